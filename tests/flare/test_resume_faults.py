"""What a job does not take away, does not run from, and does not lose: ids, folders, records and failed starts."""

from __future__ import annotations

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
from fedfms.flare.resume import KEPT, Keeper, take_over
from fedfms.flare.simulator import SIMULATED, aside, put_aside, put_back
from fedfms.flare.simulator_runs import simulate
from fedfms.methods import ServerState
from fedfms.settings import SiteSettings
from fedfms.training.site import Site

from .inprocess import Job, workspace
from .make import do
from .test_resume import SHARED, _configured, _study


def test_a_job_takes_away_what_was_kept_of_its_own_study_and_no_other(tmp_path: Path) -> None:
    folders = {}
    for name, study in (("other", _study("fedsam")), ("mine", _study())):
        folders[name] = tmp_path / "server" / KEPT / name
        Keeper(folders[name], tmp_path / "server" / name / "fedfms", study).begin()
    (tmp_path / "server" / KEPT / "nobodys").mkdir()
    job = Job(_study(), tmp_path, "two", ["other", "nobodys", "mine"])
    assert job.persistor.keeper is not None
    job.persistor.keeper.forget()
    left = {path.name for path in (tmp_path / "server" / KEPT).iterdir()}
    assert left == {"other", "nobodys"}


def test_a_job_of_ids_that_the_server_does_not_know_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="kept nothing of this study under the ids"):
        Job(_study(), tmp_path, "two", ["workspace", "none"])
    Keeper(tmp_path / "server" / KEPT / "other", tmp_path, _study("fedsam")).begin()
    with pytest.raises(TrainingError, match="kept nothing of this study under the ids"):
        Job(_study(), tmp_path, "three", ["other"])
    with pytest.raises(TrainingError, match="kept nothing of this study under the ids"):
        Job(_study(), tmp_path, "four", ["two", "three"])  # nor does a job that was not run make them known


def test_a_job_that_died_in_its_first_round_is_known_and_begun_anew(tmp_path: Path) -> None:
    Job(_study(), tmp_path, "one")
    assert Job(_study(), tmp_path, "two", ["one"]).done == 0
    assert Job(_study(), tmp_path / "simulator", SIMULATED, [SIMULATED]).done == 0  # a table's first run


def test_a_job_whose_model_cannot_be_built_is_known_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("fedfms.flare.persistor.build", dies)
        Job(_study(), tmp_path, "one")
    assert Job(_study(), tmp_path, "two", ["one"]).done == 0


def test_what_a_server_keeps_is_its_owners_alone(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / KEPT / "one", tmp_path / "run", _study())
    (tmp_path / KEPT).mkdir(mode=0o755)  # by an earlier version
    keeper.begin()
    keeper.save(ServerState(SHARED, 1), {}, [])
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / KEPT, keeper.kept)] == [0o700, 0o700]
    assert {path.stat().st_mode & 0o777 for path in keeper.kept.iterdir()} == {0o600}


def _left_out(root: Path, job: str, text: str, *, state: bool) -> None:
    folder = root / "a" / job / "fedfms"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(text)
    if state:
        (folder / "state").mkdir()
    _configured(SimpleNamespace(root=root, id_=job, study=_study()))


def test_a_resumed_run_goes_on_to_leave_the_same_images_out(tmp_path: Path) -> None:
    here, study = workspace(tmp_path, "a"), _study()
    _left_out(tmp_path, "one", "of one", state=False)  # cut in its first round
    new = tmp_path / "a" / "three" / "fedfms"
    assert not take_over(here, ["one"], new, study)
    assert (new / RECORD).read_text() == "of one"
    (new / RECORD).write_text("of three")  # it may have found more since
    _left_out(tmp_path, "two", "of two", state=True)
    assert take_over(here, ["one", "two"], new, study)
    assert (new / RECORD).read_text() == "of three"
    with pytest.raises(TrainingError, match="another study"):
        take_over(here, ["one"], tmp_path / "a" / "four" / "fedfms", _study("fedsam"))


def test_the_record_that_is_taken_over_is_the_one_that_a_site_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("fedfms.training.site.read_record", lambda path: asked.append(path) or {})
    assert Site(_study(), "a", SiteSettings(), tmp_path).data
    assert asked == [tmp_path / RECORD]


def test_the_record_of_what_is_left_out_is_there_before_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _left_out(tmp_path, "one", "of one", state=True)
    new = tmp_path / "a" / "two" / "fedfms"

    def cut(*_: object) -> None:
        assert (new / RECORD).read_text() == "of one"
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(resume, "replace_folder", cut)
        take_over(workspace(tmp_path, "a"), ["one"], new, _study())
    assert take_over(workspace(tmp_path, "a"), ["one"], new, _study())


def test_a_disk_that_is_full_while_the_state_is_copied_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _left_out(tmp_path, "one", "of one", state=True)
    monkeypatch.setattr(resume, "replace_folder", full)
    context = FLContext()
    context.put(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=True)
    context.get_workspace, context.get_job_id = lambda: workspace(tmp_path, "a"), lambda: "two"
    reply = do(SiteExecutor(_study().to_dict(), ["one"]), TRAIN, Shareable(), context)
    told = "site a: what the site keeps of the run cannot be written (No space left"
    assert str(reply.get_header(REASON)).startswith(told)


def _workspace_of_a_simulator(root: Path) -> dict[str, str]:
    files = {
        f"server/{KEPT}/{SIMULATED}/server.pt": "kept", f"server/{SIMULATED}/fedfms/rounds.jsonl": "rows",
        f"a/{SIMULATED}/fedfms/state/round_00000.pt": "state", f"server/{SIMULATED}/tb_events/a/x": "curves",
    }  # fmt: skip
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    (root / "server" / SIMULATED / "app_server").mkdir()
    return files


def test_the_simulator_keeps_what_it_would_empty_wherever_it_is_cut(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    files = _workspace_of_a_simulator(root)
    for cut in ("before it is emptied", "after", "while it is put back"):
        put_aside(root)
        assert not list(root.rglob("*.pt"))
        if cut != "before it is emptied":
            shutil.rmtree(root)
        if cut == "while it is put back":
            put_back(root)
            put_aside(root)
            shutil.move(aside(root) / "run" / "a" / SIMULATED / "fedfms", root / "left")
            (root / "a" / SIMULATED).mkdir(parents=True, exist_ok=True)
            shutil.move(root / "left", root / "a" / SIMULATED / "fedfms")
            put_aside(root)
        put_back(root)
        assert {path: (root / path).read_text() for path in files} == files, cut
        assert not (aside(root) / "run").exists()


def test_a_start_that_fails_before_the_job_is_laid_out_loses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    files = _workspace_of_a_simulator(root)
    lock = os.open(tmp_path, os.O_RDONLY)
    try:
        returned = simulate(tmp_path / "no-job", root, ["a", "b"], 1, {}, lock)
    finally:
        os.close(lock)
    assert returned and not list(root.rglob("*.pt"))
    put_back(root)
    assert {path: (root / path).read_text() for path in files} == files
    assert not (aside(root) / "run").exists()
