"""FLOPs and memory of a step, against numbers computed by hand and against a step that runs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedfms.methods import METHODS, Layout, make_method
from fedfms.models.base import SegmentationModel
from fedfms.reporting.cost.step import count, estimate, live_bytes, step_work
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study, TrainSpec, load_study
from fedfms.training.build import BuiltModel, build_on_meta
from tests.methods.common import STUDIES, study


class Small(SegmentationModel):
    """A convolution (3 -> 4, 2 x 2, stride 2), attention of its 16 tokens over 4 channels, a linear layer (4 -> 2)."""

    def __init__(self) -> None:
        super().__init__("small", input_px=8, mask_px=4, n_structures=2)
        self.conv = nn.Conv2d(3, 4, 2, stride=2)
        self.out = nn.Linear(4, 2, bias=False)

    def prefix(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).flatten(2).transpose(1, 2)

    def from_prefix(self, features: torch.Tensor) -> torch.Tensor:
        weights = torch.bmm(features, features.transpose(1, 2)).softmax(dim=-1)
        return self.out(torch.bmm(weights, features)).transpose(1, 2).reshape(-1, 2, 4, 4)

    def prefix_names(self) -> frozenset[str]:
        return frozenset({"conv.weight", "conv.bias"})

    def role(self, name: str) -> str:
        return "encoder" if name.startswith("conv") else "decoder"


CONV = 2 * 16 * 4 * (3 * 2 * 2)  # of an image: 16 positions, 4 channels, 12 multiply-adds each
ATTENTION = 2 * (2 * 16 * 16 * 4)  # q k^T and w v
LINEAR = 2 * 16 * 4 * 2


def _count(trained: tuple[str, ...], batch: int):
    with torch.device("meta"):
        model = Small()
    method = make_method("fedsam", {})
    built = BuiltModel(model, method, method.partition(Layout.of(model)), ModelSpec())
    built.train_only(trained)
    return count(built, Study.from_dict({"name": "hand", "train": {"batch_size": batch}}))


@pytest.mark.parametrize("batch", [1, 3])
def test_by_hand_all_trained(batch: int) -> None:
    work = _count(("conv.weight", "conv.bias", "out.weight"), batch)
    assert work.forward == batch * (CONV + ATTENTION + LINEAR)
    # Backward: twice the forward pass, except for the images, which need no gradient.
    assert work.backward == batch * (CONV + 2 * ATTENTION + 2 * LINEAR)
    assert work.layers == work.trained_layers == batch * (CONV + LINEAR)
    assert work.by_layers == 3 * batch * (CONV + LINEAR)
    weights = 4 * (4 * 12 + 4 + 8)
    assert work.state_bytes == weights * 4 + 3 * 4  # with gradients and Adam's two moments, and its three step counts


def test_by_hand_the_last_layer_trained() -> None:
    work = _count(("out.weight",), 2)
    assert work.forward == 2 * (CONV + ATTENTION + LINEAR)
    assert work.backward == 2 * LINEAR  # of its weight alone
    assert work.by_layers == 2 * (CONV + LINEAR) + 2 * 2 * LINEAR


@pytest.mark.slow
def test_flops_are_those_of_a_step_that_runs() -> None:
    """On the CPU, with values and a loss, the counter gives the same."""
    from torch.utils.flop_counter import FlopCounterMode

    from fedfms.training.build import build

    made = study("fedmsa")
    built, work = build(made, SiteSettings(device="cpu", attention="plain")), step_work(made)
    images = torch.rand(made.train.batch_size, 3, 64, 64)
    with FlopCounterMode(display=False) as forward:
        logits = built.model(images)
    with FlopCounterMode(display=False) as backward:
        F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).backward()
    assert (work.forward, work.backward) == (forward.get_total_flops(), backward.get_total_flops())


@pytest.mark.parametrize(
    ("change", "share"), [((), 0.1), (("model.adapter_blocks=last:1",), 0.5), (("data.augment=photometric",), 0.0)]
)
def test_the_cached_part_grows_with_the_frozen_prefix(change: tuple[str, ...], share: float) -> None:
    work = step_work(study("fedmsa", "model.backbone=tiny_vit", *change))
    assert share * work.forward <= work.cached < work.forward
    assert (work.cached > 0) == (share > 0)


@pytest.mark.slow
def test_counting_leaves_the_method_unchanged() -> None:
    """FedRA skips blocks in a step: fewer products than FedMSA, and the whole network afterwards."""
    made = study("fedra")
    assert step_work(made).forward < step_work(study("fedmsa")).forward
    built = build_on_meta(made)
    assert built.model.image_encoder.skipped == frozenset()  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_papers_flops_are_a_batch_of_six_by_layers() -> None:
    """FedFMS prints 13.4 T for SAM and 5.7 T for MSA, with a third adapter and padded tokens, unlike here."""
    found = {
        method: step_work(load_study(STUDIES / "fundus.yaml", method=method, preset="paper"))
        for method in ("fedsam", "fedmsa")
    }
    assert found["fedsam"].by_layers / 1e12 == pytest.approx(13.4, rel=0.01)
    assert found["fedmsa"].by_layers / 1e12 == pytest.approx(5.7, rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_counted(method: str) -> None:
    work = step_work(study(method))
    assert 0 < work.layers <= work.forward
    assert 0 < work.trained_layers <= work.layers
    assert work.forward / 2 < work.backward <= 2 * work.forward
    assert work.state_bytes > 0


TINY = Study("test", method="fedmsa", model=ModelSpec(backbone="vit_tiny", input_px=64), train=TrainSpec(batch_size=4))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SiteSettings(), SiteSettings(attention="plain")], ids=["fast", "plain"])
def test_an_estimate_is_close_to_the_count_of_the_whole_batch(settings: SiteSettings) -> None:
    live = live_bytes(TINY, settings)
    assert live.state == pytest.approx(2 * live.gradients, rel=0.01)  # Adam's two moments of each
    whole = live.weights + live.state + live.peak
    assert 0.8 * whole < estimate(TINY, settings) < 1.6 * whole


@pytest.mark.slow
def test_micro_batches_and_predictions_need_less_memory() -> None:
    whole = estimate(TINY, SiteSettings())
    assert estimate(TINY, SiteSettings(micro_batch=1)) < estimate(TINY, SiteSettings(micro_batch=2)) < whole
    assert estimate(TINY, SiteSettings(micro_batch=9)) == whole
    assert estimate(TINY, SiteSettings(), training=False) < whole
