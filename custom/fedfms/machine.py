"""The machine that a process runs on: CPU, cores, threads, free memory and package versions."""

import os
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

THREADS = "OMP_NUM_THREADS"  # read by torch and OpenMP
_CGROUP = Path("/sys/fs/cgroup")  # a container's limits (cgroup v2)


def machine() -> dict[str, Any]:
    """CPU, its widest instructions, cores, threads, accelerator and versions: printed with every measurement."""
    return {
        "processor": _cpuinfo("model name") or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@cache
def usable_cores() -> int:
    """Cores that this process may use; on macOS, all cores of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(requested: int, processes: int) -> int:
    """Threads for each of `processes` concurrent processes.

    `requested` if positive, else OMP_NUM_THREADS, else an even share of the usable cores.
    """
    from_env = os.environ.get(THREADS, "").split(",")[0]
    return requested or (int(from_env) if from_env.isdecimal() else 0) or max(1, usable_cores() // processes)


def cpu_vendor_and_flags() -> tuple[str, frozenset[str]]:
    """The CPU's vendor and feature flags as Linux reports them; both empty on other systems."""
    return _cpuinfo("vendor_id"), frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    """Linux's entry for the first core, or ""."""
    info = Path("/proc/cpuinfo")
    found = re.search(rf"^{key}\s*: (.*)$", info.read_text() if info.is_file() else "", re.MULTILINE)
    return found[1].strip() if found else ""


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; without them torch emulates each product."""
    return not cpu_vendor_and_flags()[1].isdisjoint({"avx512_bf16", "amx_bf16"})


def free_memory() -> int:
    """Bytes that processes here can still allocate, within the machine's memory and a container's limit."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no file, or "max": no limit
        return free
    return max(0, min(free, limit - used + int(stat.get("inactive_file", 0))))


def version_of(name: str) -> str | None:
    """Version of an installed distribution; None if it is not installed, as for a job that brings its own code."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of this package and of the packages that determine a run's numbers."""
    return {name: metadata.version(name) for name in ("fedfms", "torch", "monai", "nvflare", "numpy")}
