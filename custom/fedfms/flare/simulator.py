"""NVFLARE's simulator with a resumable workspace: `python -m fedfms.flare.simulator JOB -w WORKSPACE -c a,b`.

NVFLARE's simulator empties its workspace at its start. This one first moves the state of server and sites to a folder
next to the workspace, and back once the job's app is deployed, where a job that resumes `SIMULATED` finds it. A kill
between the two moves loses nothing: the next start moves the state back.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.fuel.utils.log_utils import LogMode
from nvflare.private.fed.app.simulator.simulator import define_simulator_parser
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from fedfms.flare.resume import CHECKPOINTS, RUN_SUBFOLDER
from fedfms.flare.tracking import EVENTS

SIMULATED: str = SimulatorConstants.JOB_NAME  # the id of every job in a simulator
SERVER = "server"  # the server's folder in a workspace
_PARENT_POLL_S = 0.5
_STATE = "run"  # folder in `state_folder`


def state_folder(workspace: Path) -> Path:
    """The folder next to a workspace for state that must survive the emptying of the workspace."""
    return workspace.with_name(f".{workspace.name}.resume")


class ResumableSimulator(SimulatorRunner):
    """A simulator that preserves the state of an earlier run in its workspace."""

    def _cleanup_workspace(self) -> None:
        move_out(Path(self.simulator_root))
        super()._cleanup_workspace()

    def _deploy_apps(self, *args: Any) -> None:
        super()._deploy_apps(*args)
        move_back(Path(self.simulator_root))


def _state(root: Path) -> Iterator[Path]:
    """Folders with state, relative to `root`: of server and sites, live curves, and the server's resume checkpoints."""
    for pattern in (f"*/{SIMULATED}/{RUN_SUBFOLDER}", f"*/{SIMULATED}/{EVENTS}", f"{SERVER}/{CHECKPOINTS}"):
        yield from (path.relative_to(root) for path in sorted(root.glob(pattern)))


def move_out(workspace: Path) -> None:
    """Move the state out of the workspace; state moved out by an earlier, interrupted start is newer and stays."""
    for path in list(_state(workspace)):
        _move(workspace / path, state_folder(workspace) / _STATE / path)


def move_back(workspace: Path) -> None:
    """Move the state back into the workspace."""
    stored = state_folder(workspace) / _STATE
    for path in list(_state(stored)):
        _move(stored / path, workspace / path)
    if not any(_state(stored)):
        shutil.rmtree(stored, ignore_errors=True)  # empty folders


def _move(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def has_checkpoint(workspace: Path) -> bool:
    """Whether the run is not complete although its records may be: interrupted while its models were scored."""
    roots = (workspace, state_folder(workspace) / _STATE)
    return any((root / SERVER / CHECKPOINTS / SIMULATED).is_dir() for root in roots)


def _end_with_parent(parent: int) -> None:
    """Kill this process group when the parent has died, so that a killed command leaves no run behind it."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """The same command line as NVFLARE's simulator."""
    parser = argparse.ArgumentParser(prog="fedfms.flare.simulator")
    define_simulator_parser(parser)
    args = parser.parse_args()
    args.log_config = args.log_config or LogMode.CONCISE
    if os.getsid(0) == os.getpid():  # started by `simulator_runs.simulate`
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    return int(ResumableSimulator(**vars(args)).run())


if __name__ == "__main__":
    sys.exit(main())
