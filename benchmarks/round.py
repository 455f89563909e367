"""One federated round in NVFLARE's simulator, one phantom image a site: what a federation costs beside its steps."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedfms.report import make_report

_ERROR_LINES = 5


def measure(method: str, backbone: str, size_px: int, sites: int, threads: int) -> dict[str, Any]:
    """Seconds of the whole run and of each site's round, MB sent, peak memory in MiB of the largest process.

    The run ends with every site having the final model to score; with one image a site there is none to score on.

    Raises:
        RuntimeError: the run did not end as it should; with the last lines of its log.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job, workspace = Path(scratch) / "job", Path(scratch) / "workspace"
        build: list[str | Path] = [
            Path(sys.executable).with_name("fedfms"), "job", "build", method, "--study", "phantom", "--rounds", "1",
            "--backbone", backbone, "--sites", ",".join(f"site-{i + 1}" for i in range(sites)), "--held-out", "",
            "--set", f"model.input_px={size_px}", "--set", "data.phantom_images=1",
            "--set", f"data.phantom_px={size_px}", "--set", "data.augment=none", "--set", "train.local_epochs=1",
        "--out", job,
        ]  # fmt: skip
        _run(build)
        started = time.perf_counter()
        _run([Path(sys.executable).with_name("nvflare"), "simulator", job, "-w", workspace, "-t", str(threads)])
        run_s = time.perf_counter() - started
        results = make_report(workspace).results
    if not results["complete"]:
        raise RuntimeError("the run was cut")
    return {
        "method": method,
        "backbone": backbone,
        "size_px": size_px,
        "sites": sites,
        "threads": threads,
        "images_per_site": 1,
        "run_s": round(run_s, 1),
        "site_round_s": [round(seconds, 1) for seconds in results["seconds"].values()],
        # Of the largest of all processes that have ended: a site's, unless it trains next to nothing.
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10),
        "sent_mb": round(results["bytes"]["total"] / 1e6, 1),
    }


def _run(command: list[str | Path]) -> None:
    env = {key: value for key, value in os.environ.items() if key != "FEDFMS_SITE"}
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-_ERROR_LINES:])
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}:\n{tail}")
