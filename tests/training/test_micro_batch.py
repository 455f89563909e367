"""Out of memory: smaller micro-batches give the same numbers; if they do not help, an error says what to do."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from fedfms.errors import TrainingError
from fedfms.methods import Tensors
from fedfms.models import SegmentationModel
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.micro_batch import out_of_memory
from fedfms.training.site import Site
from fedfms.training.state import StateStore
from fedfms.training.trainer import Trainer
from tests.methods.common import same, study
from tests.training.make import batch_of, study_of

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
FAULTS = {
    "card": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "processor": lambda: RuntimeError(ALLOCATOR),
    "python": MemoryError,
}


def hold(model: SegmentationModel, most: int, fault: Callable[[], Exception] = FAULTS["card"]) -> list[int]:
    """Make the model run out of memory with more than `most` images, after dropout has drawn its random numbers.

    Returns a list that grows by the number of images of each forward pass.
    """
    real, asked = model.from_prefix, []

    def limited(features: torch.Tensor) -> torch.Tensor:
        asked.append(len(features))
        logits = real(functional.dropout(features, 0.2) if torch.is_grad_enabled() else features)
        if len(features) > most:
            raise fault()
        return logits

    model.from_prefix = limited  # type: ignore[method-assign]
    return asked


def _site(folder: Path, of: Study, micro_batch: int = 0) -> Site:
    return Site(of, "a", SiteSettings(micro_batch=micro_batch), folder)


def _two_rounds(folder: Path, of: Study, most: int, micro_batch: int = 0) -> tuple[list[Tensors], list[int]]:
    """The updates of two rounds, each by a new `Site`, and the sizes of the second one's forward passes."""
    torch.manual_seed(0)
    received, updates = build(of, SiteSettings()).shared(), []
    for round_ in range(2):
        site = _site(folder, of, micro_batch)
        asked = hold(site.built.model, most)
        updates.append(site.train_round(round_, received).update.tensors)
    return updates, asked


@pytest.mark.slow
def test_out_of_memory_in_training_gives_the_numbers_of_a_smaller_micro_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To the bit, including dropout; the next round begins with the smaller size."""
    of = study("fedmsa", "data.phantom_images=10", "train.batch_size=8")
    with caplog.at_level(logging.WARNING):
        short, asked = _two_rounds(tmp_path / "short", of, most=2)
    messages = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert messages == [f"out of memory with micro-batches of {n} slices; continuing with {n // 2}" for n in (8, 4)]
    assert max(asked) == 2
    configured, _ = _two_rounds(tmp_path / "set", of, most=2, micro_batch=2)
    assert all(same(one, other) for one, other in zip(short, configured, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["fedmsa", "fedprox"])
def test_nothing_of_a_failed_step_remains(method: str, fault: str) -> None:
    """Memory runs out late in the backward pass; the gradients are still those of the whole batch."""
    steps = []
    for most in (9, 2):
        of = study_of(method)
        built = build(of, SiteSettings())
        trainer = Trainer(built, of.train, of.structure_names)
        optimizer, batch, received = trainer.optimizer(0), batch_of(built.model), built.shared()
        asked, real = [0], built.model.from_prefix
        built.model.from_prefix = lambda f, real=real, asked=asked: asked.append(len(f)) or real(f)  # type: ignore[method-assign, misc]

        def burst(_: torch.Tensor, asked: list[int] = asked, most: int = most) -> None:
            if asked[-1] > most:
                raise FAULTS[fault]()

        next(iter(built.parameters().values())).register_post_accumulate_grad_hook(burst)
        loss = trainer.epoch([batch], optimizer, received)
        grads = {name: p.grad for name, p in built.parameters().items() if not name.endswith("k_proj.bias")}
        steps.append((loss, grads, asked[1:]))
    assert [asked for *_, asked in steps] == [[5], [5, 2, 2, 1]]
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-6)
    for name, grad in steps[0][1].items():
        assert float((grad - steps[1][1][name]).norm()) <= 1e-6 * float(grad.norm()) + 1e-8, name  # type: ignore[operator]


@pytest.mark.slow
def test_out_of_memory_in_scoring_gives_the_same_scores() -> None:
    of, found = study_of(), []
    for most in (9, 1):
        built = build(of, SiteSettings())
        asked = hold(built.model, most)
        found.append(Trainer(built, of.train, of.structure_names).score([batch_of(built.model)] * 2).result())
    assert asked == [5, 2, 1, 1, 1, 1, 1] + [1] * 5
    assert found[0]["dice"] == pytest.approx(found[1]["dice"], abs=1e-6)


@pytest.mark.slow
def test_out_of_memory_with_one_slice_is_an_error(tmp_path: Path) -> None:
    of = study("fedmsa")
    site = _site(tmp_path, of)
    hold(site.built.model, 0)
    for attempt in (lambda: site.train_round(0, site.built.shared()), lambda: site.evaluate(site.built.shared())):
        with pytest.raises(
            TrainingError, match="^site a.*: out of memory with a micro-batch of one slice; set"
        ) as caught:
            attempt()
        assert "CUDA" not in caught.value.line()
    assert StateStore(tmp_path / "state").load() is None


@pytest.mark.slow
def test_out_of_memory_of_a_model_that_cannot_be_split_is_an_error() -> None:
    of = study_of("fedunet", "unet_tiny")
    built = build(of, SiteSettings())
    hold(built.model, 2)
    trainer = Trainer(built, of.train, of.structure_names)
    with pytest.raises(TrainingError, match="a batch of 5 slices, which this model cannot split; lower train"):
        trainer.epoch([batch_of(built.model)], trainer.optimizer(0), {})
    assert trainer.predict(batch_of(built.model)).shape[0] == 5


def test_after_running_out_of_memory_outside_a_batch_the_round_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer step cannot be undone; the round is repeated from disk."""
    of = study("fedmsa")
    site, fresh = _site(tmp_path / "site", of), _site(tmp_path / "fresh", of)
    received = site.built.shared()
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", lambda *_: torch.empty(2**60))
        with pytest.raises(TrainingError, match="^site a, round 0: out of memory; set a smaller `micro_batch`"):
            site.train_round(0, received)
    again = site.train_round(0, received).update.tensors
    assert same(again, fresh.train_round(0, received).update.tensors)


def test_other_errors_are_not_mistaken_for_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (2)"))
    assert not out_of_memory(ValueError("out of memory"))
