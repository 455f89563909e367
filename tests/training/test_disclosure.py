"""Small-cell suppression: which scores leave a site, and which do not."""

from typing import Any

import pytest
import torch

from fedfms.training.disclosure import suppress_small_cells, suppressed, suppressed_text
from fedfms.training.metrics import Scores

FULL, EMPTY = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)


def _result(full: int, empty: int = 0, *, slices: int = 1) -> dict[str, Any]:
    """Scores of two structures: `disc` in the first `full` images, `rim` in all; a case has `slices` images."""
    n = full + empty
    disc = torch.cat([FULL] * full + [EMPTY] * empty)
    truth = torch.cat([disc, torch.cat([FULL] * n)], 1)
    scores = Scores(["disc", "rim"])
    scores.add(10 * truth - 5, truth, cases=[str(index // slices) for index in range(n)])
    return scores.result()


def _numbers(value: Any) -> list[Any]:
    return [x for inner in value.values() for x in _numbers(inner)] if isinstance(value, dict) else [value]


def test_fewer_images_suppress_all_but_their_number() -> None:
    public = suppress_small_cells(_result(4), 5)
    assert {row for mode in ("standard", "fedfms") for row in _numbers(public[mode])} == {None}
    assert {key: public[key] for key in ("images", "dice", "min_cases")} == {"images": 4, "dice": None, "min_cases": 5}
    assert suppressed(public["fedfms"]["rim"])
    assert suppressed_text(public) == "suppressed (fewer than 5 images)"


def test_exactly_min_cases_images_suppress_nothing() -> None:
    result = _result(5)
    public = suppress_small_cells(result, 5)
    assert public == {key: value for key, value in result.items() if key != "present"} | {"min_cases": 5}


def test_false_positives_do_not_count_towards_min_cases() -> None:
    """Eight images count, seven with score 0: eight times their mean would be the one image's score."""
    truth = torch.cat([FULL * (torch.arange(8).view(1, 1, 2, 4) < 3), *[EMPTY] * 7])
    scores = Scores(["disc"])
    scores.add(torch.full((8, 1, 2, 4), 9.0), truth, cases=[str(index // 2) for index in range(8)])
    assert scores.result()["standard"]["disc"]["images"] == 8
    public = suppress_small_cells(scores.result(), 2)
    assert {row for mode in ("standard", "fedfms", "volume") for row in _numbers(public[mode])} == {None}
    assert public["dice"] is None
    assert "present" not in public


def test_a_structure_in_few_images_is_suppressed_in_every_mode_and_in_the_mean() -> None:
    """`fedfms` counts the others as 1: its mean over all would reveal the sum over the few."""
    result = _result(2, 8)
    result["standard"]["disc"]["dice"] = 0.0
    public = suppress_small_cells(result, 5)
    assert suppressed(public["standard"]["disc"])
    assert suppressed(public["fedfms"]["disc"])
    assert public["standard"]["disc"].keys() == result["standard"]["disc"].keys()
    assert public["standard"]["rim"] == result["standard"]["rim"]
    assert public["dice"] == 1.0


def test_volumes_count_cases() -> None:
    public = suppress_small_cells(_result(8, slices=2), 5)
    assert not suppressed(public["standard"]["disc"])
    assert suppressed(public["volume"]["disc"])
    assert not suppressed(suppress_small_cells(_result(10, slices=2), 5)["volume"]["disc"])


@pytest.mark.parametrize("full", [0, 3, 7])
def test_suppressing_twice_changes_nothing(full: int) -> None:
    once = suppress_small_cells(_result(full, 7 - full), 5)
    assert suppress_small_cells(once, 5) == once


def test_the_input_is_not_modified() -> None:
    result = _result(2)
    suppress_small_cells(result, 5)
    assert result == _result(2)
