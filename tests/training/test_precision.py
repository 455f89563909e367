"""Micro-batches and lower precision: equal or close numbers; unsupported precision is an error."""

import pytest
import torch

from fedfms.errors import StudyError, TrainingError
from fedfms.inference.predict import probabilities
from fedfms.methods.optimizers import ScaledOptimizer
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build
from fedfms.training.precision import available
from fedfms.training.trainer import Trainer
from tests.training.make import batch_of, study_of

CPU = torch.device("cpu")


def gradients_of_a_step(study: Study, settings: SiteSettings, slices: int = 5) -> tuple[BuiltModel, float]:
    """The model after two steps, with the gradients of the second, and its loss."""
    built = build(study, settings)
    trainer = Trainer(built, study.train, study.structure_names)
    optimizer, received = trainer.optimizer(0), built.shared()
    built.method.before_training(built.model, 1, received)
    batch = batch_of(built.model, slices)
    return built, [trainer.epoch([batch], optimizer, received) for _ in range(2)][-1]


def assert_same_gradients(one: BuiltModel, other: BuiltModel, most: float) -> None:
    for name, parameter in one.parameters().items():
        if name.endswith("k_proj.bias"):  # softmax cancels it; its gradient is rounding error
            continue
        theirs = other.parameters()[name].grad
        assert parameter.grad is not None
        assert theirs is not None
        assert float((parameter.grad - theirs).norm()) <= most * float(theirs.norm()) + 1e-8, name


@pytest.mark.parametrize(
    ("method", "loss"), [("fedmsa", "bce"), ("fedmsa", "dice_bce"), ("fedprox", "bce"), ("feddbe", "bce")]
)
@pytest.mark.parametrize("micro_batch", [1, 2, 9])
def test_micro_batches_give_the_gradients_of_the_batch(method: str, loss: str, micro_batch: int) -> None:
    study = study_of(method, loss=loss)
    whole, value = gradients_of_a_step(study, SiteSettings())
    parts, summed = gradients_of_a_step(study, SiteSettings(micro_batch=micro_batch))
    assert summed == pytest.approx(value, rel=1e-6)
    assert_same_gradients(parts, whole, 1e-4)


def test_a_model_that_depends_on_the_whole_batch_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("fedunet", "unet_tiny")
    seen = []
    built = build(study, SiteSettings(micro_batch=2))
    built.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    monkeypatch.setattr(type(built.model), "prefix", lambda _, images: seen.append(len(images)) or images)
    trainer = Trainer(built, study.train, study.structure_names)
    batch = batch_of(built.model)
    trainer.epoch([batch], trainer.optimizer(0), {})
    assert seen == [5]
    trainer.predict(batch)
    assert seen == [5, 2, 2, 1]


def test_scores_and_gradients_by_micro_batches() -> None:
    study = study_of()
    found = []
    for micro_batch in (0, 2):
        built = build(study, SiteSettings(micro_batch=micro_batch))
        trainer = Trainer(built, study.train, study.structure_names)
        batch = batch_of(built.model)
        names = sorted(built.parameters())[:3]
        found.append((trainer.score([batch]).result(), *trainer.gradients(batch, names)))
    assert found[0][0]["dice"] == pytest.approx(found[1][0]["dice"], abs=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    for name, grad in found[0][2].items():
        torch.testing.assert_close(grad, found[1][2][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [1e-5, 1e3])  # unscaled float16 gradients would underflow, or overflow
def test_float16_gradients_use_loss_scaling(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfms.training.precision.available", lambda *_: True)
    found = []
    for precision in ("float32", "float16"):
        study = study_of(precision=precision)
        built = build(study, SiteSettings())
        trainer = Trainer(built, study.train, study.structure_names)
        loss = trainer._loss
        monkeypatch.setattr(trainer, "_loss", lambda logits, masks, loss=loss: size * loss(logits, masks))
        found.append(trainer.gradients(batch_of(built.model), [n for n in built.parameters() if "up.weight" in n]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-2)
    for name, grad in found[0][1].items():
        assert float((found[1][1][name] - grad).norm()) < 0.1 * float(grad.norm()), name


def test_bfloat16_is_near_float32_and_trained_tensors_stay_float32() -> None:
    exact, value = gradients_of_a_step(study_of(), SiteSettings())
    near, rounded = gradients_of_a_step(study_of(precision="bfloat16"), SiteSettings())
    assert rounded != value
    assert rounded == pytest.approx(value, rel=1e-2)
    assert {tensor.dtype for tensor in near.trained().values()} == {torch.float32}
    block = near.model.image_encoder.blocks[0]  # type: ignore[union-attr, index]
    assert (block.attn.qkv.weight.dtype, block.norm1.weight.dtype) == (torch.bfloat16, torch.float32)
    assert exact.trained().keys() == near.trained().keys()


def test_storing_frozen_weights_in_bfloat16_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(precision="bfloat16")
    rounded, value = gradients_of_a_step(study, SiteSettings())
    monkeypatch.setattr("fedfms.training.precision.Forward.store_frozen", lambda *_: None)
    cast, same = gradients_of_a_step(study, SiteSettings())
    assert value == same
    assert_same_gradients(rounded, cast, 0)


def test_float16_on_a_cpu_is_an_error() -> None:
    study = study_of(precision="float16")
    with pytest.raises(TrainingError, match="train.precision is float16, which device cpu does not support; train on"):
        Trainer(build(study, SiteSettings()), study.train, study.structure_names)
    assert [available(precision, CPU) for precision in ("float32", "bfloat16", "float16")] == [True, True, False]
    with pytest.raises(StudyError, match="train.precision is 'half'"):
        study_of(precision="half")


def test_prediction_falls_back_to_float32() -> None:
    model = build(study_of(), SiteSettings()).model
    slices = [torch.randint(0, 256, (40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()]
    exact, half, near = (next(probabilities(model, slices, 1, p)) for p in ("float32", "float16", "bfloat16"))
    assert (exact == half).all()
    assert 0 < abs(exact - near).max() < 2e-2


def test_a_scaled_optimizer_steps_like_its_inner_one_and_resumes_its_scale() -> None:
    def pair() -> tuple[torch.nn.Parameter, ScaledOptimizer]:
        weight = torch.nn.Parameter(torch.ones(3))
        return weight, ScaledOptimizer(
            torch.optim.Adam([weight], lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
        )

    weight, scaled = pair()
    plain = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([plain], lr=0.1)
    for factor in (1.0, float("inf"), 2.0):  # the second step is skipped
        scaled.zero_grad()
        scaled.scale(factor * weight.square().sum()).backward()
        scaled.step()
        if factor < 3:
            adam.zero_grad()
            (factor * plain.square().sum()).backward()
            adam.step()
    torch.testing.assert_close(weight, plain)
    state = scaled.state_dict()
    assert state["scaler"]["scale"] == 512.0
    other, resumed = pair()
    other.data.copy_(weight.data)
    resumed.load_state_dict(state)
    for group in resumed.param_groups:
        group["lr"] = 0.5
    adam.param_groups[0]["lr"] = 0.5
    for optimizer, parameter in ((resumed, other), (adam, plain)):
        optimizer.zero_grad()
        loss = parameter.square().sum()
        (resumed.scale(loss) if optimizer is resumed else loss).backward()
        optimizer.step()
    torch.testing.assert_close(other, plain)
