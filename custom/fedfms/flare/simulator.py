"""NVFLARE's simulator with a resumable workspace: `python -m fedfms.flare.simulator JOB -w WORKSPACE -c a,b`.

NVFLARE's simulator empties its workspace at its start. This one first moves the state of server and sites to a folder
next to the workspace, and back once the job's app is deployed, where a job that resumes `SIMULATED` finds it. A kill
between the two moves loses nothing: the next start moves the state back.

It also ends a run whose site has lost its process, for which NVFLARE's waits until the round's timeout.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nvflare.fuel.utils.log_utils import LogMode
from nvflare.private.fed.app.simulator.simulator import define_simulator_parser
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner, SimulatorRunner
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from fedfms.errors import TrainingError
from fedfms.federation.state import FILE, ServerStateStore
from fedfms.flare.resume import CHECKPOINTS, RUN_SUBFOLDER
from fedfms.flare.tracking import EVENTS

SIMULATED: str = SimulatorConstants.JOB_NAME  # the id of every job in a simulator
SERVER = "server"  # the server's folder in a workspace
_PARENT_POLL_S = 0.5
_STATE = "run"  # folder in `state_folder`


def state_folder(workspace: Path) -> Path:
    """The folder next to a workspace for state that must survive the emptying of the workspace."""
    return workspace.with_name(f".{workspace.name}.resume")


def state_places(workspace: Path) -> tuple[Path, Path]:
    """The folders, with the layout of a workspace, that may hold a run's state; the one with newer state first."""
    return state_folder(workspace) / _STATE, workspace


class ResumableSimulator(SimulatorRunner):
    """A simulator that preserves the state of an earlier run in its workspace."""

    def _cleanup_workspace(self) -> None:
        move_out(Path(self.simulator_root))
        super()._cleanup_workspace()

    def _deploy_apps(self, *args: Any) -> None:
        super()._deploy_apps(*args)
        move_back(Path(self.simulator_root))

    def client_run(self, server_custom_folder: str, clients: list[Any], gpu: Any) -> None:
        """Run the sites' processes."""
        sites = _Sites(server_custom_folder, self.args, clients, self.client_config, self.deploy_args, self.build_ctx)
        sites.on_loss = self._end_run
        sites.run(gpu)

    def _end_run(self, site: str) -> None:
        what, do = "its process ended early, possibly for lack of memory", "run fewer sites at a time: --threads"
        with self.server.engine.new_context() as fl_ctx:
            self.system_panic(TrainingError(what, where=f"site {site}", do=do).line(), fl_ctx)


class _Sites(SimulatorClientRunner):
    """Runs tasks in processes of the sites; `on_loss` is called with the site of a process that nothing replaces."""

    on_loss: Callable[[str], None]

    def do_one_task(self, client: Any, num_of_threads: int, *args: Any, **kwargs: Any) -> Any:
        lost = True
        try:
            outcome = super().do_one_task(client, num_of_threads, *args, **kwargs)
            # The second value is the next site of this thread, and None if the process has died. With fewer threads
            # than sites, another thread starts a new process for the site.
            lost = outcome[1] is None and num_of_threads == len(self.federated_clients)
            return outcome
        finally:
            if lost:
                self.on_loss(client.client_name)


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
    return any((root / SERVER / CHECKPOINTS / SIMULATED).is_dir() for root in state_places(workspace))


def finished_rounds(workspace: Path) -> int:
    """Number of rounds after which an interrupted run resumes.

    Raises:
        TrainingError: the server's state is damaged.
    """
    for root in state_places(workspace):
        saved = ServerStateStore(root / SERVER / CHECKPOINTS / SIMULATED / FILE).read()
        if saved is not None:
            return saved.server.round
    return 0


def _end_with_parent(parent: int) -> None:
    """Kill this process group when the parent has died, so that a killed command leaves no run behind it."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """The command line of NVFLARE's simulator, and `--parent`."""
    parser = argparse.ArgumentParser(prog="fedfms.flare.simulator")
    define_simulator_parser(parser)
    parser.add_argument("--parent", type=int, help="id of the process that started this one, and without which it ends")
    args = vars(parser.parse_args())
    if (parent := args.pop("parent")) is not None:  # not `os.getppid()`: the parent may have died during the imports
        threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    return int(ResumableSimulator(**args | {"log_config": args["log_config"] or LogMode.CONCISE}).run())


if __name__ == "__main__":
    sys.exit(main())
