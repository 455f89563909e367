"""Every model file of a run identifies its model; an invalid one is a one-line error and runs no code."""

import json
import os
from pathlib import Path

import pytest
import torch

from fedfms.errors import CheckpointError, FedfmsError, StudyError
from fedfms.federation.state import ServerStateStore
from fedfms.inference.modelfile import read_model
from fedfms.methods import ServerState
from fedfms.settings import SiteSettings
from fedfms.training.state import save_model
from tests.inference.make import global_file, loaded, moved, tiny
from tests.methods.common import same


@pytest.mark.parametrize(
    ("method", "more", "kind"),
    [
        ("fedmsa", {}, "final"),
        ("fedmsa", {"round": 1}, "last"),
        ("fedmsa", {"kind": "best", "round": 1}, "best"),
        ("fedsca", {}, "shared"),
    ],
)
def test_a_global_model_has_its_kind(method: str, more: dict[str, object], kind: str, tmp_path: Path) -> None:
    file = read_model(global_file(tmp_path, tiny(method), **more))
    assert (file.kind, file.study, file.holds) == (kind, tiny(method), "shared")
    assert file.name() == f"{kind} model of phantom, {method} after {more.get('round', 2)} rounds"


def test_the_model_has_the_files_tensors_and_the_studys_frozen_ones(tmp_path: Path) -> None:
    of = tiny()
    own = loaded(global_file(tmp_path, of))
    assert same(dict(own.model.state_dict()), dict(moved(of).model.state_dict()))
    assert own.note == ""


def test_private_tensors_have_their_initial_values_and_a_note_says_so(tmp_path: Path) -> None:
    of = tiny("fedsca")
    own, whole = loaded(global_file(tmp_path, of)), moved(of)
    state = own.model.state_dict()
    assert "shared tensors only" in own.note and "\n" not in own.note
    assert same({n: state[n] for n in whole.partition.shared}, whole.shared())
    assert not any(torch.equal(state[n], whole.model.state_dict()[n]) for n in whole.partition.private)


def test_a_personal_model_is_complete(tmp_path: Path) -> None:
    of = tiny("fedsca")
    save_model(tmp_path / "personal_final.pt", of, moved(of).trained())
    own = loaded(tmp_path / "personal_final.pt")
    assert (own.file.kind, own.note) == ("personal", "")
    assert same(dict(own.model.state_dict()), dict(moved(of).model.state_dict()))


def test_the_server_state_of_the_in_process_loop_needs_a_named_study(tmp_path: Path) -> None:
    of = tiny()
    ServerStateStore(tmp_path / "server.pt").save(ServerState(shared=moved(of).shared(), round=1))
    with pytest.raises(StudyError, match="does not name its study"):
        read_model(tmp_path / "server.pt")
    (tmp_path / "result.json").write_text(json.dumps({"study": of.to_dict()}))
    file = read_model(tmp_path / "server.pt")
    assert (file.kind, file.round, file.study) == ("last", 1, of)
    named = read_model(tmp_path / "server.pt", study="phantom", overrides=["method=fedsam"])
    assert (named.study.name, named.study.method) == ("phantom", "fedsam")


def test_a_file_of_an_older_run_finds_its_study_in_the_runs_record(tmp_path: Path) -> None:
    of = tiny()
    (tmp_path / "app_server").mkdir()
    (tmp_path / "fedfms").mkdir()
    (tmp_path / "fedfms" / "run.json").write_text(json.dumps({"format": 1, "study": of.to_dict()}))
    path = tmp_path / "app_server" / "best_FL_global_model.pt"
    torch.save({"model": moved(of).shared(), "train_conf": {}}, path)
    assert (read_model(path).kind, read_model(path).study) == ("best", of)
    elsewhere = path.rename(tmp_path / "best_moved.pt")
    assert read_model(elsewhere, run=tmp_path).study == of


class _Evil:
    """Runs a command if it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = sentinel

    def __reduce__(self) -> object:
        return os.system, (f"touch {self._sentinel}",)


def test_code_in_a_file_is_not_executed(tmp_path: Path) -> None:
    torch.save({"model": _Evil(tmp_path / "sentinel")}, tmp_path / "evil_jane_doe.pt")
    with pytest.raises(CheckpointError, match="not a file of plain tensors") as caught:
        read_model(tmp_path / "evil_jane_doe.pt")
    assert not (tmp_path / "sentinel").exists()
    assert "jane_doe" not in caught.value.line()


@pytest.mark.parametrize("content", [b"", b"not torch", {"w": torch.zeros(1)}, {"model": {"w": 1}}, [1]])
def test_a_file_that_is_not_a_model_is_an_error_without_its_name(content: object, tmp_path: Path) -> None:
    path = tmp_path / "jane_doe.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(FedfmsError) as caught:
        read_model(path, study="phantom")
    assert "jane_doe" not in caught.value.line()


def test_tensors_of_another_study_are_rejected(tmp_path: Path) -> None:
    path = global_file(tmp_path, tiny(), study=tiny("fedsam").to_dict())
    with pytest.raises(CheckpointError, match="not those of this study"):
        loaded(path)


def test_weights_that_are_not_the_studys_are_rejected(tmp_path: Path) -> None:
    from fedfms.inference.loading import load_model

    weights = tmp_path / "weights.pth"
    torch.save({"w": torch.zeros(1)}, weights)
    of = tiny("fedmsa", "model.checkpoint=weights.pth", f"model.checkpoint_sha256='{'0' * 64}'")
    path = global_file(tmp_path, tiny(), study=of.to_dict())
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_model(read_model(path), SiteSettings(), weights)
    with pytest.raises(FedfmsError, match="weights.pth, whose tensors are not in its file"):
        loaded(path)
    with pytest.raises(CheckpointError, match="leave it out"):
        load_model(read_model(global_file(tmp_path, tiny())), SiteSettings(), weights)
