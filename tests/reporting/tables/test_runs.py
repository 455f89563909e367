"""Finished runs are read back, and an invalid file is an error of one line."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedfms.errors import FedfmsError
from fedfms.reporting.tables import write_tables
from fedfms.reporting.tables.runs import Key, TableError, read_runs
from fedfms.reporting.tables.writers import COLUMNS, long_form
from tests.reporting.tables.make import SITES, dice, fill, image_scores, put, result, scores


def test_a_run_by_hand(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 1, "HK", "L=4"), {"HK": image_scores([0.5, None])})
    (tmp_path / "runs" / "started").mkdir()
    (run,), unfinished = read_runs(tmp_path)
    assert unfinished == 1
    assert run.key == Key("fedmsa", 1, "HK", "L=4")
    rounds = {name: model.round for name, model in run.models.items()}
    assert (run.result.protocol, rounds) == ("held-out", {"final": 3, "best": 2})
    row = run.row("final", "HK", "standard", "prostate")
    assert row is not None
    assert (row.dice, row.iou, row.images, row.empty) == (0.83, 0.415, 8, 1)
    assert (row.dice_sd, run.models["final"].sites["HK"].images) == (0.05, 9)
    first, second = run.images["final", "HK"]
    assert first.scores["fedfms"]["prostate"] == {"dice": 0.5, "iou": 0.25}
    assert second.scores["standard"]["prostate"]["dice"] is None
    assert [point.round for point in run.result.curve] == [0, 1, 2, 3]


def test_suppressed_scores_and_volumes(tmp_path: Path) -> None:
    content = result("fedmsa", 0, "HK")
    sites = content["models"]["final"]["sites"]
    sites["UCL"]["scores"] = None
    sites["BIDMC"]["scores"] = scores(None, ("prostate",))
    sites["HK"]["scores"] = scores(0.5, ("prostate",), volume=True)
    put(tmp_path, content)
    (run,), _ = read_runs(tmp_path)
    assert run.row("final", "UCL", "standard", "prostate") is None
    suppressed = run.row("final", "BIDMC", "standard", "prostate")
    assert suppressed is not None
    assert (suppressed.dice, suppressed.images) == (None, None)
    volume = run.row("final", "HK", "volume", "prostate")
    assert volume is not None and volume.dice == 0.475


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


_HK = ("models", "final", "sites", "HK")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", to=2), "its format is 2, not 1"),
        (_set("protocol", to="personal"), "held_out and protocol do not match"),
        (_set("protocol", to="other"), "protocol: one of 'held-out', 'personal'"),
        (_set("run", "seed", to=True), "run.seed: expected int"),
        (_set("run", "method", to=""), "run.method: "),
        (_set("run", "held_out", to="elsewhere"), "the held-out site has no scores"),
        (_set("models", to={"best": {"round": 0, "sites": {}}}), "models are not final and best"),
        (_set(*_HK, "held_out", to=None), "models.final.sites.HK.held_out: expected bool"),
        (_set(*_HK, "part", to="train"), "models.final.sites.HK.part: one of 'val', 'test', 'all'"),
        (_set(*_HK, "images", to=-1), "models.final.sites.HK.images: it must be 0 or more"),
        (_set(*_HK, "scores", "standard", "prostate", "dice", to=1.5), "standard.prostate.dice: it must be 1 at most"),
        (_set(*_HK, "scores", "fedfms", "prostate", "iou", to="x"), "fedfms.prostate.iou: expected float"),
        (_set(*_HK, "scores", "fedfms", to={}), "final model, site HK: a structure has no fedfms scores"),
        (_set("curve", to=[{"round": 0, "dice": {}}] * 2), "curve has a round twice"),
        (_set("study", "title", to="a\x1b[31m"), "characters that cannot be printed"),
    ],
)
def test_a_damaged_result_is_an_error_of_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = result("fedmsa", 0, "HK")
    change(content)
    put(tmp_path, result("msa", 0, "UCL"))
    folder = tmp_path / "runs" / "damaged"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content))
    with pytest.raises(FedfmsError) as caught:
        read_runs(tmp_path)
    line = caught.value.line()
    assert message in line
    assert "run damaged" in line
    assert "\n" not in line and str(tmp_path) not in line
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize("text", ["{", "[]", "NaN"])
def test_a_result_that_is_not_an_object_is_an_error(tmp_path: Path, text: str) -> None:
    (put(tmp_path, result("fedmsa", 0, "HK")) / "result.json").write_text(text)
    with pytest.raises(TableError, match="run fedmsa-s0-HK: "):
        read_runs(tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"format": 1}, "missing key 'images'"),
        (image_scores([0.5, 2.0]), "images.1.scores.standard.prostate.dice: it must be 1 at most"),
        (image_scores([0.5]) | {"images": image_scores([0.5])["images"] * 2}, "an image is listed twice"),
        (image_scores([0.5], "bladder"), "an image has no scores of a structure"),
    ],
)
def test_the_error_of_damaged_image_scores_names_no_image(tmp_path: Path, images: Any, message: str) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"), {"HK": images})
    with pytest.raises(TableError) as caught:
        read_runs(tmp_path)
    assert message in caught.value.line()
    assert "case_" not in caught.value.line()


def test_a_run_that_exists_twice_is_an_error(tmp_path: Path) -> None:
    folder = put(tmp_path, result("fedmsa", 0, "HK"))
    folder.rename(folder.with_name("other"))
    put(tmp_path, result("fedmsa", 0, "HK"))
    with pytest.raises(TableError, match="the same as fedmsa-s0-HK"):
        read_runs(tmp_path)


def test_without_a_finished_run_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no finished run"):
        write_tables(tmp_path, "fedfms table")
    assert not list(tmp_path.iterdir())


def test_the_long_form_has_every_number_with_all_its_digits(tmp_path: Path) -> None:
    fill(tmp_path)
    rows = list(csv.DictReader(io.StringIO(long_form(read_runs(tmp_path)[0]))))
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == 18 * 2 * 3 * 2 * 2  # runs, models, sites, modes, metrics; one structure
    (row,) = (
        row for row in rows
        if (row["method"], row["seed"], row["held_out"], row["model"], row["site"], row["mode"], row["metric"])
        == ("msa", "1", "UCL", "final", "UCL", "fedfms", "dice")
    )  # fmt: skip
    assert float(row["value"]) == 0.9 * dice("msa", 1, "UCL")  # to the last bit
    assert (row["sd"], row["images"], row["empty"], row["structure"]) == ("0.05", "8", "", "prostate")
    assert (row["study"], row["dataset"], row["protocol"], row["variant"]) == ("prostate", "prostate", "held-out", "")
    assert {row["held_out"] for row in rows} == set(SITES)
