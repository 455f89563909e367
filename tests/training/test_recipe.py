"""The training recipe: learning rate by step, warm-up, clipping, slower lower blocks, cached flips."""

import math
from pathlib import Path

import pytest
import torch

from fedfms.data import open_site
from fedfms.methods.optimizers import LR_SCALE
from fedfms.settings import SiteSettings
from fedfms.training.build import build
from fedfms.training.trainer import Trainer

from ..methods.common import run, same, study
from .make import batch_of, study_of


def _trainer(method: str = "fedmsa", backbone: str = "vit_tiny", **train: object) -> Trainer:
    of = study_of(method, backbone, **train)
    return Trainer(build(of, SiteSettings()), of.train, of.structure_names)


def test_the_rate_by_step_rises_in_the_warm_up_and_falls_within_a_round() -> None:
    trainer = _trainer(rounds=2, lr=1.0, lr_schedule="cosine", lr_by="step", warmup_steps=3)
    cosine = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    expected = [factor * min(1, (step + 1) / 3) for step, factor in enumerate(cosine)]
    assert [*trainer.learning_rates(0, 4), *trainer.learning_rates(1, 4)] == pytest.approx(expected)


def test_the_rate_by_round_is_constant_within_a_round() -> None:
    trainer = _trainer(rounds=4, lr=1.0, lr_schedule="cosine")
    assert list(trainer.learning_rates(2, 3)) == [pytest.approx(0.5)] * 3


def test_each_step_has_its_rate() -> None:
    trainer = _trainer(rounds=1, lr=1.0)
    optimizer, seen = trainer.optimizer(0), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    batch = batch_of(trainer._built.model)
    trainer.epoch([batch, batch], optimizer, {}, iter([0.5, 0.25]))
    assert seen == [0.5, 0.25]


@pytest.mark.parametrize("clip_norm", [None, 1e-4])
def test_gradients_are_clipped_by_their_norm_over_all_tensors(clip_norm: float | None) -> None:
    trainer = _trainer(clip_norm=clip_norm)
    optimizer, norms = trainer.optimizer(0), []

    def norm(*_: object) -> None:
        grads = [p.grad.norm() for p in trainer._built.parameters().values() if p.grad is not None]
        norms.append(float(torch.stack(grads).norm()))

    optimizer.register_step_pre_hook(norm)
    trainer.epoch([batch_of(trainer._built.model)], optimizer, {})
    assert norms[0] > 1e-3 if clip_norm is None else norms == [pytest.approx(clip_norm, rel=1e-3)]


@pytest.mark.parametrize(("backbone", "first"), [("vit_tiny", "patch_embed."), ("tiny_vit", "patch_embed.seq.0.")])
def test_lower_blocks_of_a_trained_encoder_learn_slower(backbone: str, first: str) -> None:
    trainer = _trainer("fedsam", backbone, encoder_lr_decay=0.5, lr=1.0)
    encoder = trainer._built.model.image_encoder
    depth = len(encoder.block_dims)
    rates = {id(p): group["lr"] for group in trainer.optimizer(0).param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in trainer._built.parameters().items()}
    lowest = next(rate for name, rate in by_name.items() if name.startswith(f"image_encoder.{first}"))
    assert lowest == 0.5**depth
    blocks = [rate for name, rate in by_name.items() if ".blocks." in name and ".layers.0." not in name]
    assert sorted(set(blocks)) == [0.5 ** (depth - 1 - index) for index in range(depth)]
    assert {rate for name, rate in by_name.items() if "encoder.neck" in name or "decoder" in name} == {1.0}


def test_without_a_decay_all_tensors_are_one_group() -> None:
    groups = _trainer("fedsam").optimizer(0).param_groups
    assert [group[LR_SCALE] for group in groups] == [1.0]


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_the_studys_optimizer(kind: str) -> None:
    optimizer = _trainer(optimizer=kind, weight_decay=0.1).optimizer(0)
    assert type(optimizer).__name__.lower() == kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


FLIPS = ("model.backbone=tiny_vit", "data.augment=flip", "data.phantom_images=8")


@pytest.mark.slow
def test_cached_flips_give_the_same_numbers(tmp_path: Path) -> None:
    cached = run(study("fedmsa", *FLIPS), tmp_path / "cached")[-1]
    files = {path.stem for path in tmp_path.rglob("prefix/*/*.npy")}
    assert len({name.partition("-")[0] for name in files}) < len(files)  # flipped views besides
    computed = run(study("fedmsa", *FLIPS, "data.cache=false"), tmp_path / "computed")[-1]
    for name, tensor in computed.server.shared.items():
        torch.testing.assert_close(cached.server.shared[name], tensor, rtol=1e-4, atol=1e-5)
    again = run(study("fedmsa", *FLIPS), tmp_path / "again")[-1]
    assert same(again.server.shared, cached.server.shared)


def test_a_view_names_what_an_image_shows() -> None:
    data = open_site(study("fedmsa", "data.augment=flip"), "a", SiteSettings())
    plain = data.dataset("train", input_px=64, mask_px=64)[0]
    assert plain["view"] == plain["key"]
    views = {}
    for round_ in range(40):
        sample = data.dataset("train", input_px=64, mask_px=64, augment=True, round_=round_)[0]
        views.setdefault(sample["view"], sample["image"])
        assert torch.equal(views[sample["view"]], sample["image"])
    key = plain["key"]
    assert set(views) == {key, f"{key}-0", f"{key}-1", f"{key}-0-1"}
    torch.testing.assert_close(views[f"{key}-1"], plain["image"].flip(-1), rtol=0, atol=1 / 255)


@pytest.mark.parametrize("change", ["data.augment=photometric", "data.augment=nnunet", "data.crop_px=32"])
def test_a_randomly_changed_image_has_no_view(change: str) -> None:
    data = open_site(study("fedmsa", change), "a", SiteSettings())
    sample = data.dataset("train", input_px=64, mask_px=64, augment=True)[0]
    assert "view" not in sample
