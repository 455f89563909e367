"""Going on where an earlier job stood: what its server and its sites have kept, found by that job's id.

A job names the jobs that it goes on from, the oldest first, by their ids: never by a path. The server keeps its state
in a folder of its own beside the runs, because NVFLARE takes a run's folder away when the job ends, however it ends; a
site's runs stay. What is of another study is not taken.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nvflare.apis.workspace import Workspace

from fedfms.data.damaged import RECORD
from fedfms.errors import StudyError, TrainingError
from fedfms.federation.state import FILE, Saved, ServerStateStore
from fedfms.federation.validation import Schema
from fedfms.files import replace_folder, write_atomic
from fedfms.methods import ServerState, Tensors
from fedfms.study import Study
from fedfms.training.error_context import MAKE_ROOM
from fedfms.training.state import read_tensors

KEPT = "fedfms_runs"  # in a server's workspace: a folder a job that has not come to its end
CLIENT_CONFIG = "config_fed_client.json"  # in a job's app
OURS = "fedfms"  # in a run's folder, at the server and at a site
BEST = "best_FL_global_model.pt"  # NVFLARE's name of it
STUDY = "study.json"  # in a kept folder from the job's start on: whose it is
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MEND = "start the study again with its own job"


class Best(NamedTuple):
    """The best global model so far: the round in which the sites received it, and the mean of their Dice."""

    round: int
    dice: float
    path: Path


def job_ids(ids: Iterable[Any]) -> tuple[str, ...]:
    """The ids as they are, each the name of one folder.

    Raises:
        StudyError: one is none.
    """
    found = tuple(ids)
    if not all(isinstance(one, str) and _ID.fullmatch(one) for one in found):
        raise StudyError("what the job goes on from is no job's id", where="resume", do="use `fedfms resume`")
    return found


def run_folder(workspace: Workspace, job: str) -> Path:
    """Ours in a job's run, at the server or at a site."""
    return Path(workspace.get_run_dir(job)) / OURS


def kept_folder(workspace: Workspace, job: str) -> Path:
    """Where a server keeps what a job that is cut can be gone on with from."""
    return Path(workspace.get_root_dir()) / KEPT / job


def kept_folders(workspace: Workspace, ids: Iterable[str], study: Study) -> tuple[Path, ...]:
    """Those of the jobs that the server knows to be of this study, be it that no round of them was finished."""
    found = (kept_folder(workspace, job) for job in ids)
    return tuple(folder for folder in found if _same(_read_study(folder), study))


@dataclass
class Keeper:
    """Keeps a run's state at the server after each round: in one file, whole or not at all, and that file again in the
    run's own folder, for those who fetch the run.

    `earlier`: where the jobs of the study that it goes on from kept theirs; `rounds`, `mixing`: lines of the run's
    records so far; `resumed`: the rounds from which it went on.
    """

    kept: Path
    folder: Path
    study: Study
    earlier: tuple[Path, ...] = ()
    rounds: list[str] = field(default_factory=list)
    mixing: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)

    def begin(self) -> None:
        """Note whose the folder is, so that a job that dies before the end of its first round is known all the same.

        Raises:
            TrainingError: no room, or no right to the folder.
        """
        try:
            for folder in (self.kept.parent, self.kept):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o700)
            write_atomic(self.kept / STUDY, json.dumps(self.study.to_dict()), mode=0o600)
        except OSError as error:
            what = f"the server's state cannot be written ({error.strerror})"
            raise TrainingError(what, do=MAKE_ROOM) from error

    def go_on(self, saved: Saved) -> None:
        """Begin with what an earlier job has kept."""
        self.rounds, self.mixing = list(saved.run["rounds"]), list(saved.run["mixing"])
        self.resumed = [*saved.run["resumed"], saved.server.round]

    def save(
        self, server: ServerState, mirrors: Mapping[str, Tensors], rows: Iterable[str], mixing: str | None = None
    ) -> None:
        """Keep the server as it is after a round.

        Args:
            rows: who took part in the round: lines of `rounds.jsonl`.
            mixing: a line of `mixing.jsonl`, of a method that has such.
        """
        self.rounds += rows
        self.mixing += [] if mixing is None else [mixing]
        run = {
            "study": self.study.to_dict(), "rounds": self.rounds, "mixing": self.mixing, "resumed": self.resumed,
        }  # fmt: skip
        ServerStateStore(self.kept / FILE).save(server, mirrors, run)
        put(self.kept / FILE, self.folder / FILE)

    def forget(self) -> None:
        """The run has come to its end, and is not gone on with."""
        for folder in (self.kept, *self.earlier):
            shutil.rmtree(folder, ignore_errors=True)


def put(source: Path, target: Path) -> None:
    """The same file under a second name, at once; a copy where the file system knows no second names.

    Raises:
        OSError: no folder, no permission, no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except OSError:
        shutil.copy2(source, fresh)
    fresh.replace(target)


def saved_server(workspace: Workspace, ids: Sequence[str], study: Study, shared: Tensors) -> Saved | None:
    """The server of the newest of the jobs that has kept one; None where all were cut before the end of a round.

    Args:
        shared: the study's shared tensors, of which those that were kept must have names and shapes.

    Raises:
        TrainingError: what was kept is damaged, or of another study.
    """
    for job in reversed(ids):
        saved = ServerStateStore(kept_folder(workspace, job) / FILE).read()
        if saved is None:
            continue
        if not _same(saved.run.get("study"), study) or Schema.of(saved.server.shared) != Schema.of(shared):
            raise TrainingError("what the earlier job has kept is of another study", where="resume", do=MEND)
        return saved
    return None


def saved_best(workspace: Workspace, ids: Sequence[str], study: Study) -> Best | None:
    """The best model of the newest of the jobs of the study that has one.

    Raises:
        TrainingError: it is damaged.
    """
    for job in reversed(ids):
        path = kept_folder(workspace, job) / BEST
        if path.is_file():
            told = read_tensors(path, "the best model", lazily=True)
            if not _same(told.get("study"), study):
                continue
            return Best(int(told["round"]), float(told["dice"]), path)
    return None


def take_over(workspace: Workspace, ids: Sequence[str], folder: Path, study: Study) -> bool:
    """At a site: its states of the newest of the jobs that has any, copied to `folder`, of this job, if none is there;
    and before them what the newest that has left out images has left out.

    Returns:
        Whether there are any states then.

    Raises:
        TrainingError: they are of another study.
        OSError: they cannot be copied.
    """
    if (folder / "state").is_dir():  # put there last
        return True
    record, states = (_newest(workspace, ids, name, study) for name in (RECORD, "state"))
    if record is not None and not (folder / RECORD).exists():
        put(record, folder / RECORD)
    if states is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    replace_folder(folder / "state", partial(shutil.copytree, states, dirs_exist_ok=True))
    return True


def _newest(workspace: Workspace, ids: Sequence[str], name: str, study: Study) -> Path | None:
    """What is called so in the run at this site of the newest of the jobs that has it."""
    for job in reversed(ids):
        found = run_folder(workspace, job) / name
        if found.exists():
            config = Path(workspace.get_app_config_dir(job)) / CLIENT_CONFIG
            if not _same(sent_study(config), study):
                raise TrainingError("the state of the earlier job is of another study", where="resume", do=MEND)
            return found
    return None


def sent_study(config: Path) -> Any:
    """The study in a job's configuration of its sites, as plain content; None where it cannot be told."""
    try:
        return json.loads(config.read_text(encoding="utf-8"))["executors"][0]["executor"]["args"]["study"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _read_study(folder: Path) -> Any:
    """The study of a kept folder; None where it cannot be told."""
    try:
        return json.loads((folder / STUDY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _same(told: Any, study: Study) -> bool:
    """Whether plain content is that study; what it does not say is as it is by default."""
    try:
        return Study.from_dict(told) == study
    except (StudyError, AttributeError):
        return False
