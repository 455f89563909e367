"""Scores of many images: means and deviations by hand, volumes, and merged parts against the whole."""

import json
import math
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfms.training.disclosure import suppress_small_cells
from fedfms.training.metrics import Scores, fedfms, merge, standard

from .make import EMPTY, FULL, NO, YES, one_pixel, random_batch


def test_every_image_and_structure_has_its_own_value() -> None:
    logits = torch.cat([torch.cat([YES * FULL, NO * FULL], 1), torch.cat([NO * FULL, YES * FULL], 1)])  # (2, 2, 2, 4)
    truth = torch.ones(2, 2, 2, 4)
    for mode in (standard, fedfms):
        for value in mode(logits, truth):
            assert value.shape == (2, 2)
            assert value.round().tolist() == [[1, 0], [0, 1]]


def test_boolean_and_float_masks_are_the_same() -> None:
    logits, masks = random_batch(1, 4, 2)
    for mode in (standard, fedfms):
        for one, other in zip(mode(logits, masks), mode(logits, masks.bool()), strict=True):
            assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


def test_result_by_hand() -> None:
    """Three images of two structures: found, false positive, both empty; the second structure is always absent."""
    first = torch.cat([YES * FULL, YES * FULL, NO * FULL])
    truth = torch.cat([FULL, EMPTY, EMPTY])
    scores = Scores(["disc", "cup"])
    scores.add(torch.cat([first, NO * torch.ones_like(first)], 1), torch.cat([truth, torch.zeros_like(truth)], 1))
    result = scores.result()
    sd = pytest.approx(math.sqrt(0.5))  # of 1 and 0
    assert result["standard"] == {
        "disc": {"dice": 0.5, "iou": 0.5, "dice_sd": sd, "iou_sd": sd, "images": 2, "empty": 1},
        "cup": {"dice": None, "iou": None, "dice_sd": None, "iou_sd": None, "images": 0, "empty": 3},
    }
    disc = result["fedfms"]["disc"]
    assert disc["dice"] == pytest.approx((1 + 1e-4 / (8 + 1e-4) + 1) / 3, rel=1e-12)
    assert disc["iou"] == pytest.approx((1 + 1e-6 / (8 + 1e-6) + 1) / 3, rel=1e-12)
    assert result["fedfms"]["cup"] == {"dice": 1.0, "iou": 1.0, "dice_sd": 0.0, "iou_sd": 0.0, "images": 3}
    assert "volume" not in result  # every image is a case
    assert (result["images"], result["dice"]) == (3, 0.5)  # the mean over structures excludes missing values
    json.dumps(result, allow_nan=False)


def test_no_image_gives_none_and_not_nan() -> None:
    result = Scores(["disc"]).result()
    nothing = {"dice": None, "iou": None, "dice_sd": None, "iou_sd": None, "images": 0}
    assert result["standard"]["disc"] == nothing | {"empty": 0}
    assert result["fedfms"]["disc"] == nothing
    assert (result["images"], result["dice"]) == (0, None)


def test_one_image_has_no_standard_deviation() -> None:
    scores = Scores(["disc"])
    scores.add(YES * FULL, FULL)
    for mode in ("standard", "fedfms"):
        row = scores.result()[mode]["disc"]
        assert (row["dice"], row["dice_sd"], row["iou_sd"], row["images"]) == (1.0, None, None, 1)


def test_a_volume_by_hand() -> None:
    """Case x: 8 of 8 pixels found in one slice, one false positive pixel in another; y: empty; z: missed."""
    logits = torch.cat([YES * FULL, NO * FULL, one_pixel(YES, NO), NO * FULL])
    truth = torch.cat([FULL, EMPTY, EMPTY, FULL])
    scores = Scores(["organ"])
    scores.add(logits, truth, keys=["k0", "k1", "k2", "k3"], cases=["x", "y", "x", "z"])
    row = scores.result()["volume"]["organ"]
    dice, iou = [2 * 8 / (8 + 9), 0], [8 / 9, 0]
    assert (row["dice"], row["iou"]) == pytest.approx((statistics.fmean(dice), statistics.fmean(iou)))
    assert (row["dice_sd"], row["iou_sd"]) == pytest.approx((statistics.stdev(dice), statistics.stdev(iou)))
    assert (row["images"], row["empty"]) == (2, 1)  # cases
    assert scores.result()["standard"]["organ"]["images"] == 3  # slices


@pytest.mark.parametrize("seed", range(5))
def test_volume_scores_use_all_pixels_of_a_case(seed: int) -> None:
    """For any order of the slices and any batch size, to the bit."""
    logits, masks = random_batch(seed, 14, 2)
    cases = [f"case {index % 4}" for index in range(13)] + ["alone"]
    results = []
    for order in (range(14), random.Random(seed).sample(range(14), 14)):
        for batch in (14, 3):
            scores, order = Scores(["a", "b"]), list(order)
            for start in range(0, 14, batch):
                part = order[start : start + batch]
                scores.add(logits[part], masks[part], [str(i) for i in part], [cases[i] for i in part])
            results.append(scores.result())
    assert all(result == results[0] for result in results)
    for structure, row in enumerate(results[0]["volume"].values()):
        values = []
        for case in sorted(set(cases)):
            own = [index for index, name in enumerate(cases) if name == case]
            found, true = logits[own, structure].numpy() > 0, masks[own, structure].numpy() > 0.5
            if found.any() or true.any():
                values.append(2 * (found & true).sum() / (found.sum() + true.sum()))
        assert row["dice"] == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert (row["images"], row["empty"]) == (len(values), 5 - len(values))


def test_scores_of_images_keep_their_order_and_have_no_nan() -> None:
    scores = Scores(["disc"])
    scores.add(torch.cat([YES * FULL, NO * FULL]), torch.cat([FULL, EMPTY]), ["k1", "k0"], ["x", "y"])
    scores.add(YES * FULL, EMPTY, ["k2"], ["x"])
    images = scores.images()
    assert [(image["key"], image["case"]) for image in images] == [("k1", "x"), ("k0", "y"), ("k2", "x")]
    standards = [image["scores"]["standard"]["disc"] for image in images]
    assert standards == [{"dice": 1, "iou": 1}, {"dice": None, "iou": None}, {"dice": 0, "iou": 0}]
    assert images[1]["scores"]["fedfms"]["disc"] == {"dice": 1, "iou": 1}
    json.dumps(images, allow_nan=False)


@pytest.mark.parametrize("names", [{"keys": ["a"]}, {"cases": ["a", "b", "c"]}])
def test_a_name_for_every_image_or_for_none(names: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="zip"):
        Scores(["disc"]).add(torch.cat([FULL, FULL]), torch.cat([FULL, FULL]), **names)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 2, 4, 5), (2, 3, 4, 4)])
def test_wrong_shapes_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"both must be \(B, 2, h, w\)"):
        Scores(["disc", "cup"]).add(torch.zeros(shape), torch.zeros(2, 2, 4, 4))


def _result(logits: torch.Tensor, masks: torch.Tensor, *, batch: int, first: int = 0) -> dict[str, object]:
    """The result of images numbered from `first`; a case has two."""
    scores = Scores(["disc", "cup"])
    names = [str(first + index) for index in range(len(logits))]
    cases = [str(int(name) // 2) for name in names]
    for start in range(0, len(logits), batch):
        of = slice(start, start + batch)
        scores.add(logits[of], masks[of], names[of], cases[of])
    return scores.result()


def _flat(value: object) -> list[float | None]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _flat(item)]
    assert value is None or isinstance(value, int | float)
    return [value]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 5), max_size=4), batch=st.integers(1, 4))
def test_parts_merge_to_the_whole(seed: int, cuts: list[int], batch: int) -> None:
    logits, masks = random_batch(seed, 10, 2, px=4)
    whole = _result(logits, masks, batch=10)
    assert _result(logits, masks, batch=batch) == whole  # to the bit
    edges = [0, *(2 * cut for cut in sorted(set(cuts) - {0, 5})), 10]  # no case is in two parts
    pairs = zip(edges, edges[1:], strict=False)
    parts = [_result(logits[a:b], masks[a:b], batch=batch, first=a) for a, b in pairs]
    merged = merge(parts)
    assert list(merged) == list(whole)
    for one, other in zip(_flat(merged), _flat(whole), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12)
    json.dumps(merged, allow_nan=False)


def test_a_part_without_images_changes_nothing() -> None:
    logits, masks = random_batch(4, 6, 2)
    whole, nothing = _result(logits, masks, batch=6), Scores(["disc", "cup"]).result()
    merged = merge([nothing, whole])
    assert list(merged) == ["standard", "fedfms", "images", "dice", "present"]  # one of the two has no volume
    assert _flat(merged) == pytest.approx(_flat({key: whole[key] for key in merged}), rel=1e-12)


def test_a_row_suppressed_in_one_part_is_suppressed_in_the_whole() -> None:
    logits, masks = torch.cat([YES * FULL] * 4), torch.cat([FULL] * 4)
    few, many = Scores(["disc"]), Scores(["disc"])
    few.add(logits[:1], masks[:1])
    many.add(logits, masks)
    merged = merge([suppress_small_cells(few.result(), 2), suppress_small_cells(many.result(), 2)])
    assert set(merged["standard"]["disc"].values()) == {None}
    assert set(merged["fedfms"]["disc"].values()) == {None}
    assert (merged["images"], merged["dice"]) == (5, None)


def test_results_of_different_structures_do_not_merge() -> None:
    for results in ([], [Scores(["disc"]).result(), Scores(["cup"]).result()]):
        with pytest.raises(ValueError, match="all of the same structures"):
            merge(results)


def test_the_mean_of_several_models_is_taken_image_by_image() -> None:
    masks = torch.zeros(2, 1, 2, 2)
    masks[0, 0, 0] = 1
    one, other = Scores(["disc"]), Scores(["disc"])
    one.add(torch.where(masks > 0, 9.0, -9.0), masks, ["k0", "k1"], ["c", "c"])  # correct; the second image is empty
    other.add(torch.full((2, 1, 2, 2), 9.0), masks, ["k0", "k1"], ["c", "c"])  # all pixels: Dice 2/3 and 0
    mean = Scores.mean([one, other])
    assert [image["scores"]["standard"]["disc"]["dice"] for image in mean.images()] == [pytest.approx(5 / 6), 0.0]
    assert mean.result()["dice"] == pytest.approx(5 / 12)
    assert "volume" not in mean.result()
    with pytest.raises(ValueError, match="same images"):
        Scores.mean([one, Scores(["disc"])])


def test_images_with_equal_pixels_have_distinct_keys() -> None:
    scores = Scores(["disc"])
    scores.add(torch.ones(3, 1, 2, 2), torch.ones(3, 1, 2, 2), ["black", "other", "black"], ["a", "a", "b"])
    assert [image["key"] for image in scores.images()] == ["black", "other", "black#2"]


def test_incomplete_cases_have_no_volume_scores() -> None:
    scores = Scores(["disc"])
    scores.add(torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2), ["k0", "k1"], ["a", "a"], whole_cases=False)
    assert "volume" not in scores.result()
