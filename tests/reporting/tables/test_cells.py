"""Cells are read as they were written, and a file that is not what it must be is told in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedfms.errors import FedfmsError
from fedfms.reporting.tables import write_tables
from fedfms.reporting.tables.cells import Key, TableError, read_cells
from fedfms.reporting.tables.longform import COLUMNS, long_form
from tests.reporting.tables.make import SITES, dice, fill, image_scores, put, result, scores


def test_a_cell_by_hand(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 1, "HK", "L=4"), {"HK": image_scores([0.5, None])})
    (tmp_path / "cells" / "begun").mkdir()
    cells = read_cells(tmp_path)
    (cell,) = cells.finished
    assert cells.unfinished == 1
    assert cell.key == Key("fedmsa", 1, "HK", "L=4")
    assert (cell.protocol, cell.rounds) == ("held-out", {"final": 3, "best": 2})
    numbers = cell.numbers("final", "HK", "standard", "prostate")
    assert numbers is not None
    assert (numbers.dice, numbers.iou, numbers.images, numbers.empty) == (0.83, 0.415, 8, 1)
    assert (numbers.sd("dice"), cell.models["final"]["HK"].images) == (0.05, 9)
    first, second = cell.images["final", "HK"]
    assert first.scores["fedfms"]["prostate"] == {"dice": 0.5, "iou": 0.25}
    assert second.scores["standard"]["prostate"]["dice"] is None
    assert [round_ for round_, _ in cell.curve] == [0, 1, 2, 3]


def test_withheld_scores_and_a_volume_are_read(tmp_path: Path) -> None:
    content = result("fedmsa", 0, "HK")
    sites = content["models"]["final"]["sites"]
    sites["UCL"]["scores"] = None
    sites["BIDMC"]["scores"] = scores(None, ("prostate",))
    sites["HK"]["scores"] = scores(0.5, ("prostate",), volume=True)
    put(tmp_path, content)
    (cell,) = read_cells(tmp_path).finished
    assert cell.numbers("final", "UCL", "standard", "prostate") is None
    suppressed = cell.numbers("final", "BIDMC", "standard", "prostate")
    assert suppressed is not None
    assert (suppressed.dice, suppressed.images) == (None, None)
    volume = cell.numbers("final", "HK", "volume", "prostate")
    assert volume is not None and volume.dice == 0.475


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


_HK = ("models", "final", "sites", "HK")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("format", to=2), "its format is 2, not 1"),
        (_set("protocol", to="personal"), "held_out and protocol do not fit"),
        (_set("protocol", to="other"), "protocol is unknown"),
        (_set("cell", "seed", to=True), "seed is no whole number"),
        (_set("cell", "method", to=""), "method is no name"),
        (_set("cell", "held_out", to="elsewhere"), "the held-out site has no scores"),
        (_set("models", to={"best": {}}), "models are not final and best"),
        (_set(*_HK, "held_out", to=None), "site HK: held_out is neither"),
        (_set(*_HK, "part", to="train"), "site HK: part is unknown"),
        (_set(*_HK, "images", to=-1), "site HK: images is no count"),
        (_set(*_HK, "scores", "standard", "prostate", "dice", to=1.5), "standard, prostate: dice is no number in 0..1"),
        (_set(*_HK, "scores", "fedfms", "prostate", "iou", to="x"), "fedfms, prostate: iou is no number in 0..1"),
        (_set(*_HK, "scores", "fedfms", to={}), "fedfms, prostate: scores is missing"),
        (_set("curve", to=[{"round": 0, "dice": {}}] * 2), "rounds are not one after the other"),
        (_set("study", "title", to="a\x1b[31m"), "characters that cannot be printed"),
    ],
)
def test_a_damaged_result_is_told(tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    content = result("fedmsa", 0, "HK")
    change(content)
    put(tmp_path, result("msa", 0, "UCL"))
    folder = tmp_path / "cells" / "damaged"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content))
    with pytest.raises(FedfmsError) as caught:
        read_cells(tmp_path)
    line = caught.value.line()
    assert says in line
    assert "cell damaged" in line
    assert "\n" not in line and str(tmp_path) not in line
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize("text", ["{", "[]", "NaN"])
def test_a_result_that_is_no_object_is_told(tmp_path: Path, text: str) -> None:
    (put(tmp_path, result("fedmsa", 0, "HK")) / "result.json").write_text(text)
    with pytest.raises(TableError, match="cell fedmsa-s0-HK: "):
        read_cells(tmp_path)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({"format": 1}, "images are missing"),
        (image_scores([0.5, 2.0]), "dice is no number"),
        (image_scores([0.5]) | {"images": image_scores([0.5])["images"] * 2}, "an image is there twice"),
        (image_scores([0.5], "bladder"), "an image's scores is missing"),
    ],
)
def test_damaged_scores_of_images_are_told_without_naming_one(tmp_path: Path, images: Any, says: str) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"), {"HK": images})
    with pytest.raises(TableError) as caught:
        read_cells(tmp_path)
    assert says in caught.value.line()
    assert "case_" not in caught.value.line()


def test_a_cell_that_is_there_twice_is_told(tmp_path: Path) -> None:
    folder = put(tmp_path, result("fedmsa", 0, "HK"))
    folder.rename(folder.with_name("other"))
    put(tmp_path, result("fedmsa", 0, "HK"))
    with pytest.raises(TableError, match="the same as fedmsa-s0-HK"):
        read_cells(tmp_path)


def test_without_a_finished_cell_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no finished cell"):
        write_tables(tmp_path, "fedfms table")
    assert not list(tmp_path.iterdir())


def test_the_long_form_has_every_number_with_all_its_digits(tmp_path: Path) -> None:
    fill(tmp_path)
    rows = list(csv.DictReader(io.StringIO(long_form(read_cells(tmp_path).finished))))
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == 18 * 2 * 3 * 2 * 2  # cells, models, sites, modes, metrics; one structure
    (row,) = (
        row for row in rows
        if (row["method"], row["seed"], row["held_out"], row["model"], row["site"], row["mode"], row["metric"])
        == ("msa", "1", "UCL", "final", "UCL", "fedfms", "dice")
    )  # fmt: skip
    assert float(row["value"]) == 0.9 * dice("msa", 1, "UCL")  # to the last bit
    assert (row["sd"], row["images"], row["empty"], row["structure"]) == ("0.05", "8", "", "prostate")
    assert (row["study"], row["dataset"], row["protocol"], row["variant"]) == ("prostate", "prostate", "held-out", "")
    assert {row["held_out"] for row in rows} == set(SITES)
