"""NVFLARE's simulator, with a workspace that outlives a kill: `python -m fedfms.flare.simulator JOB -w WORKSPACE -c a,b`.

NVFLARE's own empties its workspace as it starts. This one first puts aside what the run's server and sites have kept,
in a folder beside the workspace, and back once the job's app is laid out; so that a job which goes on from
`SIMULATED` finds it. A kill or a fault between the two loses nothing: the next start puts back what lies aside.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.fuel.utils.log_utils import LogMode
from nvflare.private.fed.app.simulator.simulator import define_simulator_parser
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from fedfms.flare.resume import KEPT, OURS
from fedfms.flare.tracking import EVENTS

SIMULATED: str = SimulatorConstants.JOB_NAME  # the id of every job in a simulator
SERVER = "server"  # the server's folder in a workspace


def aside(workspace: Path) -> Path:
    """The folder beside a workspace for what must outlive its emptying."""
    return workspace.with_name(f".{workspace.name}.kept")


class KeepingRunner(SimulatorRunner):
    """A simulator that keeps what an earlier run of the workspace has left for going on."""

    def _cleanup_workspace(self) -> None:
        put_aside(Path(self.simulator_root))
        super()._cleanup_workspace()

    def _deploy_apps(self, *args: Any) -> None:
        super()._deploy_apps(*args)
        put_back(Path(self.simulator_root))


def _kept(workspace: Path) -> Iterator[Path]:
    """What there is to keep, relative to the workspace: ours, the live curves, and the server's own."""
    for pattern in (f"*/{SIMULATED}/{OURS}", f"*/{SIMULATED}/{EVENTS}", f"{SERVER}/{KEPT}"):
        yield from (path.relative_to(workspace) for path in sorted(workspace.glob(pattern)))


def put_aside(workspace: Path) -> None:
    """Take it out of the workspace, but for what an earlier start that was cut has put aside: that is the newer."""
    for path in list(_kept(workspace)):
        _move(workspace / path, aside(workspace) / "run" / path)


def put_back(workspace: Path) -> None:
    """Put it where it was."""
    kept = aside(workspace) / "run"
    for path in list(_kept(kept)):
        _move(kept / path, workspace / path)
    if not any(_kept(kept)):
        shutil.rmtree(kept, ignore_errors=True)  # folders that are empty now


def _move(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def main() -> int:
    """As NVFLARE's program."""
    parser = argparse.ArgumentParser(prog="fedfms.flare.simulator")
    define_simulator_parser(parser)
    args = parser.parse_args()
    args.log_config = args.log_config or LogMode.CONCISE
    return int(KeepingRunner(**vars(args)).run())


if __name__ == "__main__":
    sys.exit(main())
