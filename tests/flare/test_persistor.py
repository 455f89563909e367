"""The server's model: the method starts with the checkpoint that the job names."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from fedfms.flare.persistor import SharedModel, SharedModelPersistor
from fedfms.study import Study

SHARED = {"decoder.w": torch.zeros(2, 2)}


@pytest.fixture
def context(tmp_path: Path) -> FLContext:
    made = FLContext()
    made.set_prop(FLContextKey.APP_ROOT, str(tmp_path))
    made.get_engine = lambda: SimpleNamespace(fire_event=lambda *_: None)
    return made


def _persistor(saved: dict[str, torch.Tensor], folder: Path) -> SharedModelPersistor:
    path = folder / "saved.pt"
    torch.save({"model": saved}, path)
    persistor = SharedModelPersistor(Study(name="test").to_dict(), str(path))
    persistor.shared, persistor.model = SHARED, SharedModel(SHARED)
    return persistor


def test_the_method_starts_with_the_tensors_of_a_source_checkpoint(context: FLContext, tmp_path: Path) -> None:
    persistor = _persistor({"decoder.w": torch.full((2, 2), 7.0)}, tmp_path)
    learnable = persistor.load_model(context)
    assert float(learnable[ModelLearnableKey.WEIGHTS]["decoder.w"][0, 0]) == 7.0
    assert torch.equal(persistor.shared["decoder.w"], torch.full((2, 2), 7.0))


def test_a_checkpoint_of_another_study_ends_the_job(context: FLContext, tmp_path: Path) -> None:
    persistor = _persistor({"decoder.other": torch.zeros(2, 2)}, tmp_path)
    panics: list[str] = []
    persistor.system_panic = lambda reason, fl_ctx: panics.append(reason)
    assert persistor.load_model(context) is None
    assert panics == ["fedfms: server: the saved model belongs to another study; name another one"]


def test_a_saved_model_has_the_study_its_kind_and_its_rounds(context: FLContext, tmp_path: Path) -> None:
    persistor = _persistor(SHARED, tmp_path)
    persistor.study = Study(name="test")
    persistor._initialize(context)
    learnable = persistor.load_model(context)
    context.set_prop(AppConstants.CURRENT_ROUND, 4)
    persistor.handle_event(AppEventType.GLOBAL_BEST_MODEL_AVAILABLE, context)  # the result of 4 rounds
    persistor.save_model(learnable, context)
    saved = [torch.load(tmp_path / f"{name}FL_global_model.pt", weights_only=True) for name in ("best_", "")]
    assert [(file["kind"], file["round"]) for file in saved] == [("best", 4), ("final", 5)]
    assert all(Study.from_dict(file["study"]) == persistor.study for file in saved)
