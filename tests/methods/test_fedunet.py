"""FedU-Net: statistics are trained, averaged and used; the method's own backbone; a resumed run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedfms.errors import StudyError
from fedfms.flare.persistor import SharedModel, _sizes
from fedfms.methods import Layout, ServerState, Update, make_method, resolve_study
from fedfms.models import build_model
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, load_study
from fedfms.training.build import build
from fedfms.training.site import Site
from tests.methods.common import PHANTOM, assert_resumed_run_is_identical, card, run, study

METHOD = make_method("fedunet", {})


def _statistics(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "running" in name or "num_batches" in name}


def test_three_sites_by_hand() -> None:
    def update(site: str, weight: float, mean: float, steps: int, samples: int) -> Update:
        tensors = {
            "w": torch.tensor([weight]), "norm.running_mean": torch.tensor([mean]),
            "norm.num_batches_tracked": torch.tensor(steps),
        }  # fmt: skip
        return Update(site, tensors, samples)

    updates = [update("c", 4.0, 0.5, 7, 60), update("a", 1.0, 0.1, 2, 10), update("b", 2.0, -0.2, 4, 30)]
    after = METHOD.aggregate(updates, ServerState(shared={}, round=4))
    assert after.round == 5
    assert torch.equal(after.shared["w"], torch.tensor([3.1]))  # (10 + 60 + 240) / 100
    assert torch.equal(after.shared["norm.running_mean"], torch.tensor([0.25]))  # (1 - 6 + 30) / 100
    assert torch.equal(after.shared["norm.num_batches_tracked"], torch.tensor(6))  # (20 + 120 + 420) / 100 = 5.6


def test_everything_is_shared_including_statistics() -> None:
    built = build(study("fedunet"), SiteSettings())
    assert built.spec.backbone == "unet_tiny"  # the counterpart of vit_tiny
    assert set(built.partition.shared) == set(built.model.state_dict())
    assert built.partition.private == built.partition.frozen == ()
    assert len(_statistics(built.shared())) == 3 * 18


def test_the_server_counts_and_holds_statistics() -> None:
    built = build(study("fedunet"), SiteSettings())
    sizes, shared = _sizes(built), built.shared()
    assert sizes["total"] == sizes["trained"] == sizes["shared"] == sum(tensor.numel() for tensor in shared.values())
    held = SharedModel(shared).state_dict()
    assert all(torch.equal(held[name], tensor) and held[name].dtype == tensor.dtype for name, tensor in shared.items())


def test_statistics_are_trained_averaged_and_used(tmp_path: Path) -> None:
    of = study("fedunet")
    first = run(of, tmp_path, stop_after=1)[0]
    before, after = first.received["a"], first.server.shared
    one, other = (first.results[site].update for site in ("a", "b"))
    total = one.samples + other.samples
    for name, mean in _statistics(after).items():
        assert not torch.equal(one.tensors[name], before[name]), name
        by_hand = (one.samples * one.tensors[name].double() + other.samples * other.tensors[name].double()) / total
        torch.testing.assert_close(mean.double(), by_hand, rtol=1e-6, atol=1e-6)
    site = Site(of, "a", SiteSettings(), tmp_path / "a")
    scored = site.evaluate(after)["scores"]
    assert site.evaluate(after)["scores"] == scored  # scoring changes nothing
    assert all(torch.equal(tensor, after[name]) for name, tensor in site.built.shared().items())
    assert not site.built.model.training
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        received = site.built.model(batch)
        site.built.load({**after, **_statistics(before)})
        assert not torch.equal(site.built.model(batch), received)


def test_scoring_after_an_interrupted_epoch_is_in_evaluation_mode(tmp_path: Path) -> None:
    site = Site(study("fedunet"), "a", SiteSettings(), tmp_path)
    received = site.built.shared()
    scores = site.evaluate(received)["scores"]
    site.built.model.train()
    assert site.evaluate(received)["scores"] == scores


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    assert_resumed_run_is_identical(study("fedunet", rounds=3), tmp_path)


@pytest.mark.parametrize(
    ("named", "used"), [("vit_b", "unet"), ("tiny_vit", "unet"), ("vit_tiny", "unet_tiny"), ("unet", "unet")]
)
def test_the_method_uses_its_own_backbone_without_sams_weights(named: str, used: str) -> None:
    spec = ModelSpec(backbone=named, input_px=128, checkpoint="weights.pth", checkpoint_sha256="00")
    model = resolve_study(replace(study("fedunet"), model=spec), METHOD).model
    assert (model.backbone, model.input_px) == (used, 128)
    assert (model.checkpoint is None) == (named != "unet")
    again = resolve_study(replace(study("fedunet"), model=model), METHOD)
    assert resolve_study(again, METHOD) == again


def test_a_backbone_of_another_family_is_an_error() -> None:
    of = load_study(PHANTOM, method="fedmsa", overrides=["model.backbone=unet"])
    message = r"^method fedmsa: it does not train backbone unet; set model.backbone to one of \['tiny_vit', 'vit_b'"
    with pytest.raises(StudyError, match=message):
        build(of, SiteSettings())


def test_the_cards_megabytes_equal_the_partitions() -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec(backbone="unet", input_px=256), 1, adapters=False, seed=0)
    tensors = model.state_dict()
    size = sum(tensors[name].nbytes for name in METHOD.partition(Layout.of(model)).shared)
    assert re.findall(r"([\d.]+) MB up", card("fedunet")) == [f"{size / 1e6:.1f}"]
    assert re.findall(r"([\d.]+) MB down", card("fedunet")) == [f"{size / 1e6:.1f}"]
