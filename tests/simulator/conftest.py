"""Runs NVFLARE's simulator as users do: as a process, with a job folder and a workspace."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TIMEOUT_S = 300

Simulator = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def simulate() -> Simulator:
    """simulate(job, workspace, "-n", "3", ..., env={...}) -> the finished process, its log in stdout."""

    def run(
        job: Path, workspace: Path, *options: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator"]
        return subprocess.run(
            [*command, str(job), "-w", str(workspace), *options],
            env={**{k: v for k, v in os.environ.items() if k != "FEDFMS_SITE"}, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    return run
