"""Resuming a job: what its server and its sites stored, found by the job's id.

A job names the jobs that it resumes, the oldest first, by their ids, never by a path. The server stores its resume
checkpoint in a folder beside the runs, because NVFLARE removes a run's folder when the job ends; a site's runs stay.
State of another study is rejected.
"""

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
from fedfms.federation.update_schema import Schema
from fedfms.files import replace_folder, write_atomic
from fedfms.methods import ServerState, Tensors
from fedfms.schema import read_json
from fedfms.study import Study
from fedfms.training.error_context import MAKE_ROOM
from fedfms.training.state import read_tensors

CHECKPOINTS = "fedfms_runs"  # in a server's workspace: a folder for each job that has not ended
CLIENT_CONFIG = "config_fed_client.json"  # in a job's app
RUN_SUBFOLDER = "fedfms"  # in a run's folder, at the server and at a site
BEST = "best_FL_global_model.pt"  # NVFLARE's name
STUDY = "study.json"  # in a checkpoint from the job's start on
ADVICE = "start the study again with its own job"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Best(NamedTuple):
    """The best global model so far: the round in which the sites received it, and the mean of their Dice."""

    round: int
    dice: float
    path: Path


def job_ids(ids: Iterable[Any]) -> tuple[str, ...]:
    """The ids, each of which names one folder.

    Raises:
        StudyError: one is not an id.
    """
    found = tuple(ids)
    if not all(isinstance(one, str) and _ID.fullmatch(one) for one in found):
        raise StudyError("the job to resume is not given by a job's id", where="resume", do="use `fedfms resume`")
    return found


def run_folder(workspace: Workspace, job: str) -> Path:
    """This package's folder in a job's run, at the server or at a site."""
    return Path(workspace.get_run_dir(job)) / RUN_SUBFOLDER


def checkpoint_folder(workspace: Workspace, job: str) -> Path:
    """Where a server stores the resume checkpoint of a job."""
    return Path(workspace.get_root_dir()) / CHECKPOINTS / job


def checkpoint_folders(workspace: Workspace, ids: Iterable[str], study: Study) -> tuple[Path, ...]:
    """Checkpoints of those jobs that belong to the study, even if no round of them was finished."""
    found = (checkpoint_folder(workspace, job) for job in ids)
    return tuple(folder for folder in found if _same(_read_study(folder), study))


@dataclass
class ResumeCheckpoint:
    """A run's resume checkpoint at the server: one file, written atomically after each round.

    The run's own folder has the same file, for those who download the run.

    Attributes:
        folder: the checkpoint's folder.
        run: the run's folder.
        earlier: checkpoints of the jobs that this one resumes.
        rounds, mixing: lines of the run's records so far.
        resumed: the rounds from which the run was resumed.
    """

    folder: Path
    run: Path
    study: Study
    earlier: tuple[Path, ...] = ()
    rounds: list[str] = field(default_factory=list)
    mixing: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)

    def create(self) -> None:
        """Record the study, so that a job which dies in its first round can be resumed.

        Raises:
            TrainingError: no room, or no permission.
        """
        try:
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o700)
            write_atomic(self.folder / STUDY, json.dumps(self.study.to_dict()), mode=0o600)
        except OSError as error:
            what = f"the server's state cannot be written ({error.strerror})"
            raise TrainingError(what, do=MAKE_ROOM) from error

    def resume_from(self, saved: Saved) -> None:
        """Begin with the records of an earlier job."""
        self.rounds, self.mixing = list(saved.run["rounds"]), list(saved.run["mixing"])
        self.resumed = [*saved.run["resumed"], saved.server.round]

    def save(
        self, server: ServerState, mirrors: Mapping[str, Tensors], rows: Iterable[str], mixing: str | None = None
    ) -> None:
        """Store the server state after a round.

        Args:
            rows: the round's lines of `rounds.jsonl`.
            mixing: the round's line of `mixing.jsonl`, if the method makes mixtures.
        """
        self.rounds += rows
        self.mixing += [] if mixing is None else [mixing]
        run = {
            "study": self.study.to_dict(), "rounds": self.rounds, "mixing": self.mixing, "resumed": self.resumed,
        }  # fmt: skip
        ServerStateStore(self.folder / FILE).save(server, mirrors, run)
        link(self.folder / FILE, self.run / FILE)

    def remove(self) -> None:
        """The run has ended: remove its checkpoint and those of the jobs that it resumed."""
        for folder in (self.folder, *self.earlier):
            shutil.rmtree(folder, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """Give a file a second name atomically; a copy where the file system has no hard links.

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


def load_server(workspace: Workspace, ids: Sequence[str], study: Study, shared: Tensors) -> Saved | None:
    """The server state of the newest of the jobs that stored one; None where none finished a round.

    Args:
        shared: the study's shared tensors; stored ones must have the same names and shapes.

    Raises:
        TrainingError: the state is damaged, or belongs to another study.
    """
    for job in reversed(ids):
        saved = ServerStateStore(checkpoint_folder(workspace, job) / FILE).read()
        if saved is None:
            continue
        if not _same(saved.run.get("study"), study) or Schema.of(saved.server.shared) != Schema.of(shared):
            raise TrainingError("the earlier job's state belongs to another study", where="resume", do=ADVICE)
        return saved
    return None


def load_best(workspace: Workspace, ids: Sequence[str], study: Study) -> Best | None:
    """The best model of the newest of the study's jobs that has one.

    Raises:
        TrainingError: it is damaged.
    """
    for job in reversed(ids):
        path = checkpoint_folder(workspace, job) / BEST
        if path.is_file():
            content = read_tensors(path, "the best model", lazily=True)
            if _same(content.get("study"), study):
                return Best(int(content["round"]), float(content["dice"]), path)
    return None


def adopt_site_state(workspace: Workspace, ids: Sequence[str], folder: Path, study: Study) -> bool:
    """At a site: copy the states of the newest of the jobs that has any to `folder`, if it has none.

    The record of skipped images is copied first, from the newest job that has one.

    Returns:
        Whether `folder` has states then.

    Raises:
        TrainingError: they belong to another study.
        OSError: they cannot be copied.
    """
    if (folder / "state").is_dir():  # copied last
        return True
    record, states = (_newest(workspace, ids, name, study) for name in (RECORD, "state"))
    if record is not None and not (folder / RECORD).exists():
        link(record, folder / RECORD)
    if states is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    replace_folder(folder / "state", partial(shutil.copytree, states, dirs_exist_ok=True))
    return True


def _newest(workspace: Workspace, ids: Sequence[str], name: str, study: Study) -> Path | None:
    """The entry `name` in the run folder, at this site, of the newest of the jobs that has it."""
    for job in reversed(ids):
        found = run_folder(workspace, job) / name
        if found.exists():
            config = Path(workspace.get_app_config_dir(job)) / CLIENT_CONFIG
            if not _same(sent_study(config), study):
                raise TrainingError("the earlier job's state belongs to another study", where="resume", do=ADVICE)
            return found
    return None


def sent_study(config: Path) -> Any:
    """The study in a job's configuration of its sites, as plain data; None where there is none."""
    try:
        return read_json(config, StudyError)["executors"][0]["executor"]["args"]["study"]
    except (StudyError, LookupError, TypeError):
        return None


def _read_study(folder: Path) -> Any:
    """The study of a checkpoint's folder, as plain data; None where there is none."""
    try:
        return read_json(folder / STUDY, StudyError)
    except StudyError:
        return None


def _same(plain: Any, study: Study) -> bool:
    """Whether plain data describe that study; missing keys have their defaults."""
    try:
        return Study.from_dict(plain) == study
    except (StudyError, AttributeError):
        return False
