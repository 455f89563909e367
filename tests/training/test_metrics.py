"""Both modes of the metrics: against MONAI, against numbers worked out by hand, and in parts against the whole."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, MeanIoU

from fedfms.training.metrics import Scores, fedfms, merge, standard

FULL, EMPTY = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)  # 8 pixels
YES, NO = 5.0, -5.0  # logits far from every threshold


def _one_pixel(value: float, other: float) -> torch.Tensor:
    image = torch.full((1, 1, 2, 4), other)
    image[0, 0, 1, 2] = value
    return image


def _random(seed: int, images: int, structures: int, px: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks, some of them empty."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, structures, px, px, generator=rng)
    masks = (torch.rand(images, structures, px, px, generator=rng) > 0.6).float()
    empty = torch.rand(2, images, structures, generator=rng) < 0.3
    logits[empty[0]] = NO
    masks[empty[1]] = 0
    return logits, masks


@pytest.mark.parametrize("structures", [1, 3])
def test_standard_is_monai_on_images_with_a_truth(structures: int) -> None:
    logits, masks = _random(3, 12, structures)
    dice_metric, iou_metric = DiceMetric(reduction="none"), MeanIoU(reduction="none")
    predicted = (torch.sigmoid(logits) > 0.5).float()
    theirs_dice, theirs_iou = dice_metric(predicted, masks), iou_metric(predicted, masks)
    dice, iou = standard(logits, masks)
    known = masks.flatten(2).any(-1)
    assert known.any() and not known.all()
    assert torch.equal(dice[known], theirs_dice[known])
    assert torch.equal(iou[known], theirs_iou[known])


@pytest.mark.parametrize(
    ("logits", "truth", "dice", "iou"),
    [
        pytest.param(NO * FULL, EMPTY, math.nan, math.nan, id="both empty: left out"),
        pytest.param(YES * FULL, EMPTY, 0, 0, id="a false alarm counts as 0"),
        pytest.param(_one_pixel(YES, NO), EMPTY, 0, 0, id="a false alarm of one pixel too"),
        pytest.param(NO * FULL, FULL, 0, 0, id="nothing found"),
        pytest.param(YES * FULL, FULL, 1, 1, id="all of all"),
        pytest.param(_one_pixel(YES, NO), _one_pixel(1, 0), 1, 1, id="one pixel"),
        pytest.param(YES * FULL, _one_pixel(1, 0), 2 / 9, 1 / 8, id="one of 8 found, 8 said"),
        pytest.param(0 * FULL, FULL, 0, 0, id="sigmoid of 0 is not above 0.5"),
    ],
)
def test_standard_by_hand(logits: torch.Tensor, truth: torch.Tensor, dice: float, iou: float) -> None:
    got = [value.item() for value in standard(logits, truth)]
    assert got == pytest.approx([dice, iou], nan_ok=True, abs=1e-7)


@pytest.mark.parametrize(
    ("logits", "truth", "dice", "iou"),
    [
        pytest.param(NO * FULL, EMPTY, 1, 1, id="both empty: only the smoothing is left, 1e-4 / 1e-4"),
        pytest.param(YES * FULL, EMPTY, 1e-4 / (8 + 1e-4), 1e-6 / (8 + 1e-6), id="false alarm"),
        pytest.param(NO * FULL, FULL, 1e-4 / (8 + 1e-4), 1e-6 / (8 + 1e-6), id="nothing found"),
        pytest.param(YES * FULL, FULL, 1, 1, id="all of all: (16 + s) / (16 + s)"),
        pytest.param(_one_pixel(YES, NO), _one_pixel(1, 0), 1, 1, id="one pixel"),
        pytest.param(YES * FULL, _one_pixel(1, 0), (2 + 1e-4) / (9 + 1e-4), (1 + 1e-6) / (8 + 1e-6), id="one of 8"),
        # 0.2 is above 0.1 only: at one threshold of five it is found, at four it is not.
        pytest.param(
            0.2 * FULL, FULL, (1 + 4 * 1e-4 / (8 + 1e-4)) / 5, (1 + 4 * 1e-6 / (8 + 1e-6)) / 5, id="a logit of 0.2"
        ),
        # 0.6 is above 0.1, 0.3 and 0.5. The sigmoid of it, 0.65, would be too; that of 0.2, 0.55, would be as well.
        pytest.param(
            0.6 * FULL, FULL, (3 + 2 * 1e-4 / (8 + 1e-4)) / 5, (3 + 2 * 1e-6 / (8 + 1e-6)) / 5, id="a logit of 0.6"
        ),
    ],
)
def test_fedfms_by_hand(logits: torch.Tensor, truth: torch.Tensor, dice: float, iou: float) -> None:
    got = [value.item() for value in fedfms(logits, truth)]
    assert got == pytest.approx([dice, iou], rel=1e-12, abs=0)


def test_every_image_and_structure_has_its_own_value() -> None:
    logits = torch.cat([torch.cat([YES * FULL, NO * FULL], 1), torch.cat([NO * FULL, YES * FULL], 1)])  # (2, 2, 2, 4)
    truth = torch.ones(2, 2, 2, 4)
    for mode in (standard, fedfms):
        for value in mode(logits, truth):
            assert value.shape == (2, 2)
            assert value.round().tolist() == [[1, 0], [0, 1]]


def test_boolean_and_float_masks_are_the_same() -> None:
    logits, masks = _random(1, 4, 2)
    for mode in (standard, fedfms):
        for one, other in zip(mode(logits, masks), mode(logits, masks.bool()), strict=True):
            assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


def test_result_by_hand() -> None:
    """Three images of two structures: found, false alarm, both empty; the second structure is never there."""
    first = torch.cat([YES * FULL, YES * FULL, NO * FULL])
    truth = torch.cat([FULL, EMPTY, EMPTY])
    scores = Scores(["disc", "cup"])
    scores.add(torch.cat([first, NO * torch.ones_like(first)], 1), torch.cat([truth, torch.zeros_like(truth)], 1))
    result = scores.result()
    assert result["standard"] == {
        "disc": {"dice": 0.5, "iou": 0.5, "images": 2, "empty": 1},
        "cup": {"dice": None, "iou": None, "images": 0, "empty": 3},
    }
    disc = result["fedfms"]["disc"]
    assert disc["dice"] == pytest.approx((1 + 1e-4 / (8 + 1e-4) + 1) / 3, rel=1e-12)
    assert disc["iou"] == pytest.approx((1 + 1e-6 / (8 + 1e-6) + 1) / 3, rel=1e-12)
    assert result["fedfms"]["cup"] == {"dice": 1.0, "iou": 1.0, "images": 3}
    assert (result["images"], result["dice"]) == (3, 0.5)  # the mean over structures leaves out what has no value
    json.dumps(result, allow_nan=False)


def test_nothing_at_all_is_none_and_not_nan() -> None:
    result = Scores(["disc"]).result()
    assert result["standard"]["disc"] == {"dice": None, "iou": None, "images": 0, "empty": 0}
    assert result["fedfms"]["disc"] == {"dice": None, "iou": None, "images": 0}
    assert (result["images"], result["dice"]) == (0, None)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 2, 4, 5), (2, 3, 4, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"both must be \(B, 2, h, w\)"):
        Scores(["disc", "cup"]).add(torch.zeros(shape), torch.zeros(2, 2, 4, 4))


def _result(logits: torch.Tensor, masks: torch.Tensor, *, batch: int) -> dict[str, object]:
    scores = Scores(["disc", "cup"])
    for start in range(0, len(logits), batch):
        scores.add(logits[start : start + batch], masks[start : start + batch])
    return scores.result()


def _flat(value: object) -> list[float | None]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _flat(item)]
    assert value is None or isinstance(value, int | float)
    return [value]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 10), max_size=4), batch=st.integers(1, 4))
def test_parts_merge_to_the_whole(seed: int, cuts: list[int], batch: int) -> None:
    logits, masks = _random(seed, 10, 2, px=4)
    whole = _result(logits, masks, batch=10)
    assert _result(logits, masks, batch=batch) == whole  # to the bit
    edges = [0, *sorted(cuts), 10]
    parts = [_result(logits[a:b], masks[a:b], batch=batch) for a, b in zip(edges, edges[1:], strict=False)]
    merged = merge(parts)
    for one, other in zip(_flat(merged), _flat(whole), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one == pytest.approx(other, rel=1e-12, abs=1e-15)
    json.dumps(merged, allow_nan=False)


def test_results_of_different_structures_do_not_merge() -> None:
    for results in ([], [Scores(["disc"]).result(), Scores(["cup"]).result()]):
        with pytest.raises(ValueError, match="all of the same structures"):
            merge(results)
