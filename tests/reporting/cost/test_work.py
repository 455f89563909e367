"""FLOPs and memory of a step, against what is worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedfms.methods import METHODS, Layout, make_method
from fedfms.models.base import SegmentationModel
from fedfms.reporting.cost.work import count, step_work
from fedfms.study import ModelSpec, Study, load_study
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

    def roles(self) -> dict[str, str]:
        return {name: "encoder" if name.startswith("conv") else "decoder" for name, _ in self.named_parameters()}

    def adapters_in_order(self) -> list[tuple[str, ...]]:
        return []


CONV = 2 * 16 * 4 * (3 * 2 * 2)  # of an image: 16 places, 4 channels, 12 products and sums each
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
    # Backward: twice what is before it but for the images, which need no gradient.
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


def test_flops_are_those_of_a_step_that_runs() -> None:
    """On the processor, with values and a loss, the counter has the same."""
    from torch.utils.flop_counter import FlopCounterMode

    from fedfms.settings import SiteSettings
    from fedfms.training.build import build

    made = study("fedmsa")
    built, told = build(made, SiteSettings(device="cpu", attention="plain")), step_work(made)
    images = torch.rand(made.train.batch_size, 3, 64, 64)
    with FlopCounterMode(display=False) as forward:
        logits = built.model(images)
    with FlopCounterMode(display=False) as backward:
        F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).backward()
    assert (told.forward, told.backward) == (forward.get_total_flops(), backward.get_total_flops())


def test_counting_leaves_the_method_as_it_was() -> None:
    """FedRA leaves blocks out of a step: fewer products than FedMSA, and the whole network after."""
    made = study("fedra")
    assert step_work(made).forward < step_work(study("fedmsa")).forward
    built = build_on_meta(made)
    assert built.model.image_encoder.skipped == frozenset()  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_papers_flops_are_a_batch_of_six_by_layers() -> None:
    """FedFMS prints 13.4 T for SAM and 5.7 T for MSA, whose third adapter and padded tokens are not here."""
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
