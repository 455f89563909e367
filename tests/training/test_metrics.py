"""The metrics against MONAI, loops over pixels, and numbers computed by hand."""

import math
import statistics

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, MeanIoU

from fedfms.training.metrics import Scores, fedfms, standard

from .make import EMPTY, FULL, NO, YES, one_pixel, random_batch


@pytest.mark.parametrize("structures", [1, 3])
def test_standard_equals_monai_on_images_with_a_truth(structures: int) -> None:
    logits, masks = random_batch(3, 12, structures)
    dice_metric, iou_metric = DiceMetric(reduction="none"), MeanIoU(reduction="none")
    predicted = (torch.sigmoid(logits) > 0.5).float()
    theirs_dice, theirs_iou = dice_metric(predicted, masks), iou_metric(predicted, masks)
    dice, iou = standard(logits, masks)
    known = masks.flatten(2).any(-1)
    assert known.any() and not known.all()
    assert torch.equal(dice[known], theirs_dice[known])
    assert torch.equal(iou[known], theirs_iou[known])


@pytest.mark.parametrize("structures", [1, 3])
def test_standard_differs_from_monai_on_empty_images_only(structures: int) -> None:
    """MONAI excludes every image with an empty truth (`ignore_empty`) or counts it: a false positive as 0, as here, and
    an image that is empty in both as 1. Here only the latter is excluded.
    """
    logits, masks = random_batch(3, 12, structures)
    keep_empty = {"reduction": "none", "ignore_empty": False}
    predicted = (torch.sigmoid(logits) > 0.5).float()
    theirs = [metric(**keep_empty)(predicted, masks) for metric in (DiceMetric, MeanIoU)]
    excluded = ~predicted.flatten(2).any(-1) & ~masks.flatten(2).any(-1)
    false_positive = predicted.flatten(2).any(-1) & ~masks.flatten(2).any(-1)
    assert excluded.any() and false_positive.any()
    for ours, monai in zip(standard(logits, masks), theirs, strict=True):
        assert torch.equal(ours.isnan(), excluded)
        assert torch.equal(ours[~excluded], monai[~excluded])
        assert not ours[false_positive].any()
    scores = Scores([f"s{index}" for index in range(structures)])
    scores.add(logits, masks)
    for index, row in enumerate(scores.result()["standard"].values()):
        for metric, monai in zip(("dice", "iou"), theirs, strict=True):
            known = monai[:, index][~excluded[:, index]].double().tolist()
            assert row[metric] == pytest.approx(statistics.fmean(known), rel=1e-12)
            assert row[f"{metric}_sd"] == pytest.approx(statistics.stdev(known), rel=1e-9)


@pytest.mark.parametrize(
    ("logits", "truth", "dice", "iou"),
    [
        pytest.param(NO * FULL, EMPTY, math.nan, math.nan, id="both empty: excluded"),
        pytest.param(YES * FULL, EMPTY, 0, 0, id="a false positive counts as 0"),
        pytest.param(one_pixel(YES, NO), EMPTY, 0, 0, id="a false positive of one pixel too"),
        pytest.param(NO * FULL, FULL, 0, 0, id="nothing found"),
        pytest.param(YES * FULL, FULL, 1, 1, id="all found"),
        pytest.param(one_pixel(YES, NO), one_pixel(1, 0), 1, 1, id="one pixel"),
        pytest.param(YES * FULL, one_pixel(1, 0), 2 / 9, 1 / 8, id="one true pixel, 8 predicted"),
        pytest.param(0 * FULL, FULL, 0, 0, id="sigmoid of 0 is not above 0.5"),
    ],
)
def test_standard_by_hand(logits: torch.Tensor, truth: torch.Tensor, dice: float, iou: float) -> None:
    got = [value.item() for value in standard(logits, truth)]
    assert got == pytest.approx([dice, iou], nan_ok=True, abs=1e-7)


@pytest.mark.parametrize(
    ("logits", "truth", "dice", "iou"),
    [
        pytest.param(NO * FULL, EMPTY, 1, 1, id="both empty: smoothing only, 1e-4 / 1e-4"),
        pytest.param(YES * FULL, EMPTY, 1e-4 / (8 + 1e-4), 1e-6 / (8 + 1e-6), id="false positive"),
        pytest.param(NO * FULL, FULL, 1e-4 / (8 + 1e-4), 1e-6 / (8 + 1e-6), id="nothing found"),
        pytest.param(YES * FULL, FULL, 1, 1, id="all found: (16 + s) / (16 + s)"),
        pytest.param(one_pixel(YES, NO), one_pixel(1, 0), 1, 1, id="one pixel"),
        pytest.param(YES * FULL, one_pixel(1, 0), (2 + 1e-4) / (9 + 1e-4), (1 + 1e-6) / (8 + 1e-6), id="one of 8"),
        # 0.2 is above one threshold of five, 0.1.
        pytest.param(
            0.2 * FULL, FULL, (1 + 4 * 1e-4 / (8 + 1e-4)) / 5, (1 + 4 * 1e-6 / (8 + 1e-6)) / 5, id="a logit of 0.2"
        ),
        # 0.6 is above 0.1, 0.3 and 0.5. So are the sigmoids of 0.6 (0.65) and of 0.2 (0.55).
        pytest.param(
            0.6 * FULL, FULL, (3 + 2 * 1e-4 / (8 + 1e-4)) / 5, (3 + 2 * 1e-6 / (8 + 1e-6)) / 5, id="a logit of 0.6"
        ),
    ],
)
def test_fedfms_by_hand(logits: torch.Tensor, truth: torch.Tensor, dice: float, iou: float) -> None:
    got = [value.item() for value in fedfms(logits, truth)]
    assert got == pytest.approx([dice, iou], rel=1e-12, abs=0)


def _fedfms_by_loop(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The definition, pixel by pixel, for one image (h, w): smoothed ratios averaged over thresholds."""
    dice, iou = [], []
    for threshold in np.float32([0.1, 0.3, 0.5, 0.7, 0.9]).tolist():  # as torch compares float32 logits with them
        inter = total = union = 0
        for logit, true in zip(logits.ravel().tolist(), truth.ravel().tolist(), strict=True):
            inter += logit > threshold and true
            total += (logit > threshold) + true
            union += logit > threshold or true
        dice.append((2 * inter + 1e-4) / (total + 1e-4))
        iou.append((inter + 1e-6) / (union + 1e-6))
    return sum(dice) / 5, sum(iou) / 5


def _edges() -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of a logit image (empty, full, one pixel, at the thresholds) and a truth (empty, full, one pixel)."""
    at = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.09, 0.31, 0.91]).reshape(1, 1, 2, 4)
    logits = [NO * FULL, YES * FULL, one_pixel(YES, NO), at, 0 * FULL]
    truths = [EMPTY, FULL, one_pixel(1, 0)]
    pairs = [(logit, truth) for logit in logits for truth in truths]
    return torch.cat([logit for logit, _ in pairs]), torch.cat([truth for _, truth in pairs])


@pytest.mark.parametrize(
    ("logits", "masks"), [_edges(), random_batch(5, 20, 3), random_batch(6, 5, 1, px=16)], ids=["edges", "three", "one"]
)
def test_fedfms_equals_its_definition(logits: torch.Tensor, masks: torch.Tensor) -> None:
    dice, iou = fedfms(logits, masks)
    for index in np.ndindex(*logits.shape[:2]):
        expected = _fedfms_by_loop(logits[index].numpy(), masks[index].bool().numpy())
        assert (dice[index].item(), iou[index].item()) == pytest.approx(expected, rel=1e-12, abs=0)
    scores = Scores([f"s{index}" for index in range(logits.shape[1])])
    scores.add(logits, masks)
    for index, row in enumerate(scores.result()["fedfms"].values()):
        assert row["dice"] == pytest.approx(dice[:, index].mean().item(), rel=1e-12)
        assert row["images"] == len(logits)
