"""A job that resumes others ends with the same bits, wherever they were cut, and rejects state of other studies."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nvflare.app_common.app_event_type import AppEventType

from fedfms.cli import main
from fedfms.errors import StudyError, TrainingError
from fedfms.experiments.folder import save_record
from fedfms.federation.state import FILE, ServerStateStore
from fedfms.flare.controller import ResumedScatterAndGather
from fedfms.flare.job import build_job
from fedfms.flare.resume import (
    BEST,
    CHECKPOINTS,
    ResumeCheckpoint,
    adopt_site_state,
    job_ids,
    link,
    load_best,
    load_server,
)
from fedfms.flare.resume_job import next_job, read_job
from fedfms.flare.selector import AcceptedModelSelector
from fedfms.methods import ServerState, make_method, resolve_study
from fedfms.provisioning.policy import SERVER_CLASSES, SITE_CLASSES
from fedfms.study import STUDIES, Study, load_study
from fedfms.training.state import StateStore, write_tensors
from tests.experiments.make import experiment

from .inprocess import Job, same, workspace

PHANTOM = STUDIES / "phantom.yaml"
SMALL = [
    "data.phantom_images=5", "data.phantom_px=32", "model.input_px=32", "train.rounds=3", "train.local_epochs=1",
    "sites=[a, b]", "held_out=[]", "federation.min_cases=1", "federation.tracking=none",
]  # fmt: skip
SHARED = {"w": torch.zeros(2)}


def _study(method: str = "fedmsa", codec: str = "none") -> Study:
    return load_study(PHANTOM, method=method, overrides=[*SMALL, f"federation.compression={codec}"])


def _assert_same(job: Job, whole: Job) -> None:
    """The server state and the sites' states hold the same bits."""
    for name in ("shared", "per_site", "state", "round"):
        assert same(getattr(job.server, name), getattr(whole.server, name)), name
    for site in whole.study.sites:
        found = [StateStore(each.root / site / each.id_ / "fedfms" / "state").load() for each in (job, whole)]
        one, other = (vars(state) for state in found if state is not None)
        assert same(one, other), site


# Private tensors and mixtures, stored tensors of the method, the optimizer alone; without and with compression.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "codec"),
    [("fedmsa", "none"), ("fedsca", "none"), ("fedala", "none"), ("fedmsa", "int8"), ("fedsca", "int8")],
)
def test_jobs_that_resume_one_another_end_with_the_same_bits(method: str, codec: str, tmp_path: Path) -> None:
    study = _study(method, codec)
    whole = Job(study, tmp_path / "whole", "one")
    for round_ in range(3):
        whole.round(round_)

    first = Job(study, tmp_path / "cut", "first")
    _configured(first)
    first.round(0)
    first.context.set_prop("current_round", 1)
    first.ask("a", 1)  # cut here: site a has trained the next round, b has not
    second = Job(study, tmp_path / "cut", "second", ["first"])
    _configured(second)
    assert second.done == 1
    second.round(1)
    assert len(second.persistor.checkpoint.rounds) == 4  # two sites, two rounds
    third = Job(study, tmp_path / "cut", "third", ["first", "second"])
    assert third.done == 2 and third.persistor.checkpoint.resumed == [1, 2]
    third.round(2)
    _assert_same(third, whole)


def _configured(job: Job) -> None:
    """Write the job's configuration at its sites, where NVFLARE writes it."""
    for site in job.study.sites:
        folder = job.root / site / job.id_ / f"app_{site}" / "config"
        folder.mkdir(parents=True)
        content = {"executors": [{"executor": {"args": {"study": job.study.to_dict()}}}]}
        (folder / "config_fed_client.json").write_text(json.dumps(content))


def _checkpoint(root: Path, job: str, round_: int, study: Study) -> Path:
    """The folder of a job's resume checkpoint after `round_` rounds."""
    checkpoint = ResumeCheckpoint(root / "server" / CHECKPOINTS / job, root / "server" / job / "fedfms", study)
    checkpoint.save(ServerState(SHARED, round_), {}, ['{"round": 0}'])
    return checkpoint.folder


def test_the_newest_job_that_completed_a_round_is_resumed(tmp_path: Path) -> None:
    study, here = _study(), workspace(tmp_path, "server")
    assert load_server(here, ["one"], study, SHARED) is None
    _checkpoint(tmp_path, "one", 3, study)
    _checkpoint(tmp_path, "two", 5, study)
    (tmp_path / "server" / CHECKPOINTS / "three").mkdir()  # cut in its first round
    found = load_server(here, ["one", "two", "three"], study, SHARED)
    assert found is not None and found.server.round == 5 and found.run["rounds"] == ['{"round": 0}']


def test_the_checkpoint_outlives_the_runs_folder_which_nvflare_removes(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path, "one", 3, _study())
    assert ServerStateStore(tmp_path / "server" / "one" / "fedfms" / FILE).load().round == 3
    shutil.rmtree(tmp_path / "server" / "one")
    assert ServerStateStore(folder / FILE).load().round == 3
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600


def test_state_of_another_study_is_rejected(tmp_path: Path) -> None:
    here = workspace(tmp_path, "server")
    folder = _checkpoint(tmp_path, "one", 3, _study())
    with pytest.raises(TrainingError, match="another study"):
        load_server(here, ["one"], _study("fedsam"), SHARED)
    with pytest.raises(TrainingError, match="another study"):
        load_server(here, ["one"], _study(), {"w": torch.zeros(3)})
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-200])
    with pytest.raises(TrainingError, match="cannot be read"):
        load_server(here, ["one"], _study(), SHARED)


def test_a_site_adopts_its_state_once_and_of_the_same_study_only(tmp_path: Path) -> None:
    here, study = workspace(tmp_path, "a"), _study()
    state = tmp_path / "a" / "one" / "fedfms" / "state"
    state.mkdir(parents=True)
    (state / "round_00000.pt").write_bytes(b"state")
    new = tmp_path / "a" / "two" / "fedfms"
    with pytest.raises(TrainingError, match="another study"):
        adopt_site_state(here, ["one"], new, study)  # the earlier job's configuration is missing
    _configured(SimpleNamespace(root=tmp_path, id_="one", study=study))
    with pytest.raises(TrainingError, match="another study"):
        adopt_site_state(here, ["one"], new, _study("fedsam"))
    assert not new.exists()
    assert not adopt_site_state(here, ["none"], new, study)
    assert adopt_site_state(here, ["one", "none"], new, study)
    assert (new / "state" / "round_00000.pt").read_bytes() == b"state"
    (state / "round_00000.pt").write_bytes(b"other")
    adopt_site_state(here, ["one"], new, study)
    assert (new / "state" / "round_00000.pt").read_bytes() == b"state"


@pytest.mark.parametrize("id_", ["../x", "a/b", ".", "..", "", "a.b", "/etc", "x" * 65, 3, "a\n"])
def test_a_job_names_the_jobs_that_it_resumes_by_ids_only(id_: object, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not given by a job's id"):
        job_ids([id_])
    with pytest.raises(StudyError, match="not given by a job's id"):
        build_job(_study(), tmp_path / "job", resume=[id_])  # type: ignore[list-item]
    assert not (tmp_path / "job").exists()


def test_the_next_job_has_the_same_study_and_names_all_jobs_before_it(tmp_path: Path) -> None:
    study = resolve_study(_study("fedsca"), make_method("fedsca", {}))
    first = build_job(study, tmp_path / "first")
    assert read_job(first) == (study, ())
    second = next_job(first, "id-1", tmp_path / "second")
    third = next_job(second, "id-2", tmp_path / "third")
    assert read_job(third) == (study, ("id-1", "id-2"))
    config = (third / "app" / "config" / "config_fed_client.json").read_text()
    assert json.loads(config)["executors"][0]["executor"]["args"]["resume"] == ["id-1", "id-2"]
    with pytest.raises(StudyError, match="not a job of this package"):
        next_job(tmp_path, "id-1", tmp_path / "other")


def test_a_kit_allows_the_classes_of_the_next_job(tmp_path: Path) -> None:
    job = build_job(_study(), tmp_path / "job", resume=["id-1"])
    for side, allowed in (("server", SERVER_CLASSES), ("client", SITE_CLASSES)):
        config = (job / "app" / "config" / f"config_fed_{side}.json").read_text()
        assert set(re.findall(r'"path": "([^"]+)"', config)) <= set(allowed)


def test_the_command_writes_the_next_job_or_names_the_missing_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = build_job(_study(), tmp_path / "job")
    assert main(["resume", str(job)]) == 1
    assert "--out" in capsys.readouterr().err
    assert main(["resume", str(job), "--out", str(tmp_path / "on")]) == 1
    assert "--job-id" in capsys.readouterr().err
    assert main(["resume", str(job), "--job-id", "id-1", "--out", str(tmp_path / "on")]) == 0
    assert read_job(tmp_path / "on")[1] == ("id-1",)
    shutil.copytree(job / "app", tmp_path / "id-7" / "app_server")
    assert main(["resume", str(tmp_path / "id-7"), "--out", str(tmp_path / "on")]) == 0
    assert read_job(tmp_path / "on")[1] == ("id-7",)
    shutil.copytree(tmp_path / "id-7", tmp_path / "id-8" / "workspace")  # as NVFLARE downloads it
    assert main(["resume", str(tmp_path / "id-8" / "workspace"), "--out", str(tmp_path / "on")]) == 0
    assert read_job(tmp_path / "on")[1] == ("id-8",)
    save_record(tmp_path, experiment(), [], "fedfms table phantom --out OUT")
    capsys.readouterr()
    assert main(["resume", str(tmp_path)]) == 0
    assert "fedfms table phantom --out OUT" in capsys.readouterr().out


def test_the_controller_runs_the_remaining_rounds() -> None:
    from fedfms.flare.persistor import SharedModelPersistor

    persistor = SharedModelPersistor(_study().to_dict())
    for done, left in ((2, (2, 6)), (8, (8, 0))):
        controller = ResumedScatterAndGather(num_rounds=8, persistor_id="persistor")
        controller._engine = SimpleNamespace(get_component=lambda name: persistor if name == "persistor" else None)
        controller.system_panic = lambda *_: None
        controller.log_info = controller.log_warning = lambda *_, **__: None
        persistor.saved = SimpleNamespace(server=ServerState(SHARED, done))
        controller.start_controller(SimpleNamespace(set_prop=lambda *_, **__: None))
        assert (controller._start_round, controller._num_rounds) == left


def test_a_new_best_model_must_surpass_the_earlier_jobs_best(tmp_path: Path) -> None:
    folder = tmp_path / "server" / CHECKPOINTS / "one"
    folder.mkdir(parents=True)
    write_tensors(folder / BEST, {"model": SHARED, "round": 2, "dice": 0.75, "study": _study().to_dict()}, "it")
    assert load_best(workspace(tmp_path, "server"), ["one", "two"], _study("fedsam")) is None
    best = load_best(workspace(tmp_path, "server"), ["one", "two"], _study())
    assert best is not None and (best.round, best.dice) == (2, 0.75)
    selector = AcceptedModelSelector("val_dice")
    engine = SimpleNamespace(get_component=lambda _: SimpleNamespace(best=best))
    selector.handle_event(AppEventType.INITIAL_MODEL_LOADED, SimpleNamespace(get_engine=lambda: engine))
    assert selector.best_val_metric == 0.75


def test_a_link_is_made_atomically_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "a").unlink(missing_ok=True)
        (tmp_path / "a").write_text(content)
        link(tmp_path / "a", tmp_path / "folder" / "b")
        assert (tmp_path / "folder" / "b").read_text() == content
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["b"]
