"""Resuming under faults: foreign checkpoints, unknown ids, interrupted copies, a full disk, failed starts."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedfms.data.damaged import RECORD
from fedfms.errors import TrainingError
from fedfms.flare import resume
from fedfms.flare.executor import SiteExecutor
from fedfms.flare.messages import REASON, TRAIN
from fedfms.flare.resume import CHECKPOINTS, ResumeCheckpoint, adopt_site_state
from fedfms.flare.simulator import SIMULATED, move_back, move_out, state_folder
from fedfms.flare.simulator_runs import simulate
from fedfms.methods import ServerState
from fedfms.settings import SiteSettings
from fedfms.training.site import Site

from .inprocess import Job, workspace
from .make import do
from .test_resume import SHARED, _configured, _study


def test_a_finished_job_removes_the_checkpoints_of_its_own_study_only(tmp_path: Path) -> None:
    folders = {}
    for name, study in (("other", _study("fedsam")), ("mine", _study())):
        folders[name] = tmp_path / "server" / CHECKPOINTS / name
        ResumeCheckpoint(folders[name], tmp_path / "server" / name / "fedfms", study).create()
    (tmp_path / "server" / CHECKPOINTS / "empty").mkdir()
    job = Job(_study(), tmp_path, "two", ["other", "empty", "mine"])
    assert job.persistor.checkpoint is not None
    job.persistor.checkpoint.remove()
    left = {path.name for path in (tmp_path / "server" / CHECKPOINTS).iterdir()}
    assert left == {"other", "empty"}


def test_a_job_that_names_unknown_ids_only_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no state of this study under the ids"):
        Job(_study(), tmp_path, "two", ["workspace", "none"])
    ResumeCheckpoint(tmp_path / "server" / CHECKPOINTS / "other", tmp_path, _study("fedsam")).create()
    with pytest.raises(TrainingError, match="no state of this study under the ids"):
        Job(_study(), tmp_path, "three", ["other"])
    with pytest.raises(TrainingError, match="no state of this study under the ids"):
        Job(_study(), tmp_path, "four", ["two", "three"])  # a job that never ran leaves no checkpoint


def test_a_job_that_died_in_its_first_round_is_started_again(tmp_path: Path) -> None:
    Job(_study(), tmp_path, "one")
    assert Job(_study(), tmp_path, "two", ["one"]).done == 0
    assert Job(_study(), tmp_path / "simulator", SIMULATED, [SIMULATED]).done == 0  # the first run of an experiment


def test_a_job_that_dies_while_its_model_is_built_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("fedfms.flare.persistor.build", die)
        Job(_study(), tmp_path, "one")
    assert Job(_study(), tmp_path, "two", ["one"]).done == 0


def test_only_its_owner_may_read_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = ResumeCheckpoint(tmp_path / CHECKPOINTS / "one", tmp_path / "run", _study())
    (tmp_path / CHECKPOINTS).mkdir(mode=0o755)  # by an earlier version
    checkpoint.create()
    checkpoint.save(ServerState(SHARED, 1), {}, [])
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / CHECKPOINTS, checkpoint.folder)] == [0o700, 0o700]
    assert {path.stat().st_mode & 0o777 for path in checkpoint.folder.iterdir()} == {0o600}


def _record(root: Path, job: str, text: str, *, state: bool) -> None:
    """Write a site's record of skipped images in an earlier job, with or without stored states."""
    folder = root / "a" / job / "fedfms"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(text)
    if state:
        (folder / "state").mkdir()
    _configured(SimpleNamespace(root=root, id_=job, study=_study()))


def test_a_resumed_run_skips_the_same_images(tmp_path: Path) -> None:
    here, study = workspace(tmp_path, "a"), _study()
    _record(tmp_path, "one", "of one", state=False)  # cut in its first round
    new = tmp_path / "a" / "three" / "fedfms"
    assert not adopt_site_state(here, ["one"], new, study)
    assert (new / RECORD).read_text() == "of one"
    (new / RECORD).write_text("of three")  # the site may have found more since
    _record(tmp_path, "two", "of two", state=True)
    assert adopt_site_state(here, ["one", "two"], new, study)
    assert (new / RECORD).read_text() == "of three"
    with pytest.raises(TrainingError, match="another study"):
        adopt_site_state(here, ["one"], tmp_path / "a" / "four" / "fedfms", _study("fedsam"))


def test_a_site_reads_the_record_that_was_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("fedfms.training.site.read_record", lambda path: asked.append(path) or {})
    assert Site(_study(), "a", SiteSettings(), tmp_path).data
    assert asked == [tmp_path / RECORD]


def test_the_record_of_skipped_images_is_copied_before_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _record(tmp_path, "one", "of one", state=True)
    new = tmp_path / "a" / "two" / "fedfms"

    def cut(*_: object) -> None:
        assert (new / RECORD).read_text() == "of one"
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(resume, "replace_folder", cut)
        adopt_site_state(workspace(tmp_path, "a"), ["one"], new, _study())
    assert adopt_site_state(workspace(tmp_path, "a"), ["one"], new, _study())


def test_a_full_disk_while_the_state_is_copied_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _record(tmp_path, "one", "of one", state=True)
    monkeypatch.setattr(resume, "replace_folder", full)
    context = FLContext()
    context.put(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=True)
    context.get_workspace, context.get_job_id = lambda: workspace(tmp_path, "a"), lambda: "two"
    reply = do(SiteExecutor(_study().to_dict(), ["one"]), TRAIN, Shareable(), context)
    reason = "site a: the site's files of the run cannot be written (No space left"
    assert str(reply.get_header(REASON)).startswith(reason)


def _workspace_of_a_simulator(root: Path) -> dict[str, str]:
    files = {
        f"server/{CHECKPOINTS}/{SIMULATED}/server.pt": "server", f"server/{SIMULATED}/fedfms/rounds.jsonl": "rows",
        f"a/{SIMULATED}/fedfms/state/round_00000.pt": "state", f"server/{SIMULATED}/tb_events/a/x": "curves",
    }  # fmt: skip
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    (root / "server" / SIMULATED / "app_server").mkdir()
    return files


def test_the_simulator_preserves_its_state_wherever_it_is_cut(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    files = _workspace_of_a_simulator(root)
    for cut in ("before it is emptied", "after", "while it is moved back"):
        move_out(root)
        assert not list(root.rglob("*.pt"))
        if cut != "before it is emptied":
            shutil.rmtree(root)
        if cut == "while it is moved back":
            move_back(root)
            move_out(root)
            shutil.move(state_folder(root) / "run" / "a" / SIMULATED / "fedfms", root / "left")
            (root / "a" / SIMULATED).mkdir(parents=True, exist_ok=True)
            shutil.move(root / "left", root / "a" / SIMULATED / "fedfms")
            move_out(root)
        move_back(root)
        assert {path: (root / path).read_text() for path in files} == files, cut
        assert not (state_folder(root) / "run").exists()


@pytest.mark.slow
def test_a_start_that_fails_before_the_job_is_deployed_loses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    files = _workspace_of_a_simulator(root)
    lock = os.open(tmp_path, os.O_RDONLY)
    try:
        returned = simulate(tmp_path / "no-job", root, ["a", "b"], 1, {}, lock)
    finally:
        os.close(lock)
    assert returned and not list(root.rglob("*.pt"))
    move_back(root)
    assert {path: (root / path).read_text() for path in files} == files
    assert not (state_folder(root) / "run").exists()
