"""FednnU-Net: loss, schedule and optimizer by hand; plan and augmentation at a site; a resumed run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.errors import StudyError
from fedfms.methods import Layout, ServerState, Update, make_method, resolve_study
from fedfms.methods.fednnunet import deeply_supervised
from fedfms.models import build_model
from fedfms.settings import SiteSettings
from fedfms.study import ModelSpec, Study, TrainSpec
from fedfms.training.build import build
from fedfms.training.site import Site
from tests.methods.common import assert_resumed_run_is_identical, card, same, study

PLAN = {
    "input_px": 32, "features": [4, 6, 8, 8], "kernels": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "batch_size": 2
}  # fmt: skip
METHOD = make_method("fednnunet", {})


def test_three_sites_by_hand() -> None:
    updates = [Update(s, {"w": torch.tensor([v])}, n) for s, v, n in (("c", 4.0, 60), ("a", 1.0, 10), ("b", 2.0, 30))]
    assert torch.equal(METHOD.aggregate(updates, ServerState(shared={})).shared["w"], torch.tensor([3.1]))  # 310 / 100


def test_deep_supervision_by_hand() -> None:
    logits = torch.tensor([1.0, 3.0, 5.0]).view(1, 3, 1, 1, 1)
    masks = torch.zeros(1, 1, 1, 1)
    # Weights 1, 1/2, 1/4 over their sum 7/4: (1 + 1.5 + 1.25) / 1.75
    loss = deeply_supervised(lambda x, y: (x - y).mean())
    assert loss(logits, masks).item() == pytest.approx(3.75 / 1.75)
    assert loss(logits[:, 1], masks).item() == 3.0


def test_dice_and_cross_entropy_by_hand() -> None:
    logits = torch.zeros(2, 1, 1, 2)  # p = 1/2 everywhere
    masks = torch.tensor([[[[1.0, 1.0]]], [[[1.0, 0.0]]]])
    # Over the batch: 1 - (2 x 1.5) / (2 + 3) = 0.4; entropy ln 2. By image it would be 1 - (2/3 + 1/2) / 2.
    expected = 0.4 + torch.log(torch.tensor(2.0)).item()
    assert METHOD.loss(TrainSpec())(logits, masks).item() == pytest.approx(expected, abs=1e-4)


def test_the_learning_rate_decays_by_round() -> None:
    spec = TrainSpec(rounds=10, lr=1.0)
    assert METHOD.learning_rate(spec, 0) == 0.01
    assert METHOD.learning_rate(spec, 0.5) == pytest.approx(0.01 * 0.5**0.9)
    assert METHOD.learning_rate(spec, 0.9) == pytest.approx(0.01 * 0.1**0.9)
    assert METHOD.learning_rate(spec, 1.0) == METHOD.learning_rate(spec, 1.2) == 0.0  # rounds beyond the planned ones


def test_a_step_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 1.0]))
    optimizer = METHOD.optimizer({"w": weight}, TrainSpec())
    weight.grad = torch.tensor([30.0, 40.0])  # norm 50, clipped to 12: [7.2, 9.6]
    optimizer.step()
    # Decay adds 3e-5 w; Nesterov's first step is lr (1 + momentum) g = 0.0199 g.
    expected = torch.tensor([2 - 0.0199 * (7.2 + 6e-5), 1 - 0.0199 * (9.6 + 3e-5)])
    torch.testing.assert_close(weight.data, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be below 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"augment": "flip"}, "augment is 'flip'; one of 'nnunet', 'study'"),
        ({"plan": {"input_px": 64}}, "missing key 'plan.features'"),
        ({"plan": "best"}, "plan: expected mapping, got 'best'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        make_method("fednnunet", options)


def test_plan_and_augmentation_reach_the_site(tmp_path: Path) -> None:
    site = Site(study("fednnunet", options={"plan": PLAN}), "a", SiteSettings(), tmp_path)
    assert (site.study.model.backbone, site.study.model.input_px) == ("nnunet_tiny", 32)
    assert site.study.data.augment == "nnunet"
    assert site.built.model.get_parameter("net.bottleneck.conv2.conv.weight").shape == (8, 8, 3, 3)
    resolved = resolve_study(
        study("fednnunet", "data.augment=photometric"), make_method("fednnunet", {"augment": "study"})
    )
    assert resolved.data.augment == "photometric"
    assert resolved.model.input_px == 64
    assert Study.from_dict(site.study.to_dict()) == site.study


def test_everything_is_shared_once() -> None:
    built = build(study("fednnunet"), SiteSettings())
    assert built.spec.backbone == "nnunet_tiny"
    assert built.partition.private == built.partition.frozen == ()
    pointers = [p.data_ptr() for p in built.parameters().values()]
    assert len(set(pointers)) == len(pointers) == len(built.partition.shared)


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    whole = assert_resumed_run_is_identical(study("fednnunet", rounds=3, options={"plan": PLAN}), tmp_path)
    assert not same(whole[-1].server.shared, whole[-1].received["a"])


def test_the_cards_megabytes_equal_the_partitions() -> None:
    rows = re.findall(r"^\| (\d+) px \| (\d+) \| ([\d,]+) \| ([\d.]+) MB \|$", card("fednnunet"), re.MULTILINE)
    assert len(rows) == 3
    for px, stages, parameters, megabytes in rows:
        with torch.device("meta"):
            model = build_model(ModelSpec(backbone="nnunet", input_px=int(px)), 1, adapters=False, seed=0)
        tensors = dict(model.named_parameters())
        shared = [tensors[name] for name in METHOD.partition(Layout.of(model)).shared]
        assert f"{sum(t.numel() for t in shared):,}" == parameters
        assert f"{sum(t.nbytes for t in shared) / 1e6:.1f}" == megabytes
        assert len(model.net.strides) == int(stages)
