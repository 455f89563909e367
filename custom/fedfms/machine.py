"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

THREADS = "OMP_NUM_THREADS"  # the variable that torch and OpenMP read
_CGROUP = Path("/sys/fs/cgroup")  # a container's own, of version 2


def machine() -> dict[str, Any]:
    """Processor, its widest instructions, cores, threads, accelerator and versions."""
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
    """Cores that this process may use; macOS does not tell, and gives them all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(asked: int, at_once: int) -> int:
    """Threads of each of `at_once` processes: `asked`, or where that is 0 what OMP_NUM_THREADS says, or else an even
    share of the cores that this process may use.
    """
    said = os.environ.get(THREADS, "").split(",")[0]
    return asked or (int(said) if said.isdecimal() else 0) or max(1, usable_cores() // at_once)


def maker_and_flags() -> tuple[str, frozenset[str]]:
    """The processor's maker and what it can, in Linux' words; elsewhere neither is told."""
    return _cpuinfo("vendor_id"), frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    """What Linux says of the first core; "" where it says nothing."""
    info = Path("/proc/cpuinfo")
    found = re.search(rf"^{key}\s*: (.*)$", info.read_text() if info.is_file() else "", re.MULTILINE)
    return found[1].strip() if found else ""


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16, which others work out number by number."""
    return not maker_and_flags()[1].isdisjoint({"avx512_bf16", "amx_bf16"})


def free_memory() -> int:
    """Bytes that processes here may still take: of the machine's, and of a container's limit."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # none, or "max": no limit
        return free
    return max(0, min(free, limit - used + int(stat.get("inactive_file", 0))))


def version_of(name: str) -> str | None:
    """Of an installed distribution; None where there is none of that name, as of a job that brings its own code."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Of this package and of those that a run's numbers hang on."""
    return {name: metadata.version(name) for name in ("fedfms", "torch", "monai", "nvflare", "numpy")}
