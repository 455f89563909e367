"""What a site tells of its scores, and what it keeps because it is of too few images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedfms.training.disclosure import suppress_small_cells, suppressed, suppressed_text
from fedfms.training.metrics import Scores

FULL, EMPTY = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)


def _result(full: int, empty: int = 0, *, slices: int = 1) -> dict[str, Any]:
    """Of images of two structures: `disc` in the first `full` of them, `rim` in all; `slices` make a case."""
    n = full + empty
    disc = torch.cat([FULL] * full + [EMPTY] * empty)
    truth = torch.cat([disc, torch.cat([FULL] * n)], 1)
    scores = Scores(["disc", "rim"])
    scores.add(10 * truth - 5, truth, cases=[str(index // slices) for index in range(n)])
    return scores.result()


def _numbers(value: Any) -> list[Any]:
    return [x for inner in value.values() for x in _numbers(inner)] if isinstance(value, dict) else [value]


def test_of_fewer_images_no_number_is_told_but_how_many_there_are() -> None:
    told = suppress_small_cells(_result(4), 5)
    assert {row for mode in ("standard", "fedfms") for row in _numbers(told[mode])} == {None}
    assert {key: told[key] for key in ("images", "dice", "min_cases")} == {"images": 4, "dice": None, "min_cases": 5}
    assert suppressed(told["fedfms"]["rim"])
    assert suppressed_text(told) == "suppressed (fewer than 5 images)"


def test_of_as_many_all_is_told() -> None:
    result = _result(5)
    told = suppress_small_cells(result, 5)
    assert told == {key: value for key, value in result.items() if key != "shown"} | {"min_cases": 5}


def test_false_alarms_are_no_cover_for_the_one_image_that_shows_it() -> None:
    """Eight images count, seven of them 0: eight times their mean would be that one image's own score."""
    truth = torch.cat([FULL * (torch.arange(8).view(1, 1, 2, 4) < 3), *[EMPTY] * 7])
    scores = Scores(["disc"])
    scores.add(torch.full((8, 1, 2, 4), 9.0), truth, cases=[str(index // 2) for index in range(8)])
    assert scores.result()["standard"]["disc"]["images"] == 8
    told = suppress_small_cells(scores.result(), 2)
    assert {row for mode in ("standard", "fedfms", "volume") for row in _numbers(told[mode])} == {None}
    assert told["dice"] is None
    assert "shown" not in told


def test_a_structure_in_few_images_is_withheld_in_every_mode_and_from_the_mean() -> None:
    """`fedfms` counts the others as 1: its mean over all would tell the sum over the few."""
    result = _result(2, 8)
    result["standard"]["disc"]["dice"] = 0.0
    told = suppress_small_cells(result, 5)
    assert suppressed(told["standard"]["disc"])
    assert suppressed(told["fedfms"]["disc"])
    assert told["standard"]["disc"].keys() == result["standard"]["disc"].keys()
    assert told["standard"]["rim"] == result["standard"]["rim"]
    assert told["dice"] == 1.0


def test_volumes_are_counted_in_cases() -> None:
    told = suppress_small_cells(_result(8, slices=2), 5)
    assert not suppressed(told["standard"]["disc"])
    assert suppressed(told["volume"]["disc"])
    assert not suppressed(suppress_small_cells(_result(10, slices=2), 5)["volume"]["disc"])


@pytest.mark.parametrize("full", [0, 3, 7])
def test_what_is_told_is_told_again_as_it_is(full: int) -> None:
    once = suppress_small_cells(_result(full, 7 - full), 5)
    assert suppress_small_cells(once, 5) == once


def test_the_scores_themselves_are_left_as_they_are() -> None:
    result = _result(2)
    suppress_small_cells(result, 5)
    assert result == _result(2)
