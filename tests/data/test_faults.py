"""Damaged images: skipped up to the study's limit, counted, never named; all other images are unaffected."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedfms.data import SiteData, open_site
from fedfms.data.damaged import RECORD, read_record, write_record
from fedfms.errors import DataError
from fedfms.reporting import make_report
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.site import Site
from tests.data.make import STRUCTURES, make_site, make_study
from tests.methods.common import same
from tests.reporting.make import make_rows, make_run


def _paint(path: Path, *size: int) -> None:
    Image.fromarray(np.zeros(size, np.uint8)).save(path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-40]) and None,  # type: ignore[func-returns-value]
    "empty": lambda path: path.write_bytes(b"") and None,  # type: ignore[func-returns-value]
    "no image": lambda path: path.write_bytes(b"x" * 500) and None,  # type: ignore[func-returns-value]
    "missing": Path.unlink,
    "other size": lambda path: _paint(path, *((20, 12) if path.parent.name == "labels" else (20, 12, 3))),
    "other pixels": lambda path: _paint(path, *((12, 20) if path.parent.name == "labels" else (12, 20, 3))),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_site(tmp_path)
    return tmp_path


def _open(root: Path, **data: object) -> SiteData:
    return open_site(make_study(**data), "a", SiteSettings(data_root=root))


def _damage(root: Path, data: SiteData, part: str, *numbers: int, how: str = "cut short", kind: str = "image") -> None:
    for number in numbers:
        item = data.parts[part][number]
        DAMAGE[how](root / "eyes" / "a" / (item.image if kind == "image" else item.label))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_images_are_skipped_and_the_others_stay_in_their_parts(
    how: str, kind: str, cache: bool, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = _open(root)
    _damage(root, before, "train", 3, 5, how=how, kind=kind)
    with caplog.at_level(logging.WARNING):
        data = _open(root, max_unreadable_images=2, cache=cache)
    assert data.unreadable_images == 2
    assert data.parts["val"] == before.parts["val"]
    assert data.parts["train"] == tuple(item for i, item in enumerate(before.parts["train"]) if i not in (3, 5))
    assert len(list(data.dataset("all", input_px=8, mask_px=8))) == len(before.parts["all"]) - 2
    assert [record.getMessage() for record in caplog.records] == ["site a: the run skips 2 damaged or missing images"]


@pytest.mark.parametrize(
    ("limit", "says"), [(1, "2 images are damaged or missing, data.max_unreadable_images is 1"), (0, "")]
)
def test_more_damaged_images_than_the_study_allows_are_an_error(limit: int, says: str, root: Path) -> None:
    data = _open(root)
    _damage(root, data, "train", 0)
    _damage(root, data, "val", 0, how="missing")
    with pytest.raises(DataError, match=f"^site a.*{says}") as caught:
        list(_open(root, max_unreadable_images=limit).dataset("all", input_px=8, mask_px=8))
    assert str(root) not in caught.value.line()
    assert (data.parts["train"][0].case in caught.value.line()) is False or limit == 0


def test_images_that_a_study_does_not_use_may_be_damaged(root: Path) -> None:
    every, used = ({item.case for item in _open(root, max_images=n).parts["all"]} for n in (None, 10))
    for case in every - used:
        (root / "eyes" / "a" / "images" / f"{case}_0.png").unlink()
    assert _open(root, max_images=10, max_unreadable_images=1).unreadable_images == 0


def test_a_case_with_a_skipped_slice_is_incomplete(root: Path) -> None:
    data = _open(root)
    _damage(root, data, "val", 0)
    data = _open(root, max_unreadable_images=1)
    assert data.whole_cases("train")
    assert data.whole_cases("val")  # cases have one slice, so the skipped slice's case is in no part
    case = data.parts["val"][0].case
    incomplete = SiteData("a", data.parts, "val", data.spec, 0, data.source, frozenset({(case, 1)}))
    assert (incomplete.whole_cases("train"), incomplete.whole_cases("val")) == (True, False)


def _stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("limit", [0, 1])
def test_a_stop_takes_effect_before_the_next_image_is_decoded(limit: int, root: Path) -> None:
    study, settings = make_study(max_unreadable_images=limit), SiteSettings(data_root=root)
    with pytest.raises(KeyboardInterrupt):
        data = open_site(study, "a", settings, check_stop=_stop)
        data.dataset("train", input_px=8, mask_px=8, check_stop=_stop)


def _study(limit: int) -> Study:
    return Study.from_dict({
        "name": "eyes",
        "data": {"dataset": "eyes", "structures": STRUCTURES, "max_unreadable_images": limit, "cache": False},
        "model": {"backbone": "vit_tiny", "input_px": 32},
        "train": {"batch_size": 6, "lr": 1e-3},
        "federation": {"min_cases": 1},
    })  # fmt: skip


@pytest.mark.slow
def test_a_site_skips_the_same_images_in_every_round_and_reports_their_number(root: Path, tmp_path: Path) -> None:
    """Each round in a new `Site`, even after the damaged file is repaired."""
    settings, received = SiteSettings(data_root=root), build(_study(2), SiteSettings()).shared()
    data = _open(root)
    damaged = root / "eyes" / "a" / data.parts["train"][3].image
    shutil.copy(damaged, tmp_path / "good.png")
    _damage(root, data, "train", 3)
    first = Site(_study(2), "a", settings, tmp_path / "run").train_round(0, received)
    assert (first.update.samples, first.unreadable_images) == (len(data.parts["train"]) - 1, 1)
    path = tmp_path / "run" / RECORD
    assert path.stat().st_mode & 0o777 == 0o600
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    second = Site(_study(2), "a", settings, tmp_path / "run").train_round(1, first.update.tensors)
    shutil.copy(tmp_path / "good.png", damaged)
    again = Site(_study(2), "a", settings, tmp_path / "other").train_round(1, first.update.tensors)
    assert (again.update.samples, again.unreadable_images) == (second.update.samples, 1)
    assert same(again.update.tensors, second.update.tensors)
    report = Site(_study(2), "a", settings, tmp_path / "run").evaluate(received)
    assert (report["images"], report["unreadable_images"]) == (2, 1)
    assert data.parts["train"][3].case not in json.dumps(report)


@pytest.mark.slow
def test_an_image_damaged_during_a_run_costs_one_round(root: Path, tmp_path: Path) -> None:
    """In a running process: the round that detects it fails, later rounds skip the image."""
    site = Site(_study(1), "a", SiteSettings(data_root=root), tmp_path / "run")
    received = site.built.shared()
    assert site.train_round(0, received).unreadable_images == 0
    _damage(root, _open(root), "train", 0)
    with pytest.raises(DataError, match="^site a, round 1, case case.*: the image of slice 0 is missing or damaged"):
        site.train_round(1, received)
    assert site.train_round(2, received).unreadable_images == 1


def test_a_truncated_record_of_damaged_images_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run" / RECORD
    write_record(path, {"a": frozenset()})
    assert (path.exists(), read_record(path)) == (False, {})
    write_record(path, {"a": frozenset({("c1", 0), ("c0", 2)})})
    assert read_record(path) == {"a": frozenset({("c1", 0), ("c0", 2)})}
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="^the run's record of damaged images: not valid JSON"):
            read_record(path)


@pytest.mark.parametrize(
    "raw", [{}, {"format": 2, "sites": {}}, {"format": 1}, {"format": 1, "sites": {"a": [["c", "0"]]}}, [],
            {"format": 1, "sites": {"a": [["c"]]}}, {"format": 1, "sites": ["a"]}],
)  # fmt: skip
def test_a_record_of_another_form_is_an_error(raw: object, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps(raw))
    with pytest.raises(DataError, match="^the run's record of damaged images: .*; remove the run's folder"):
        read_record(tmp_path / RECORD)


def test_the_report_counts_skipped_images(tmp_path: Path) -> None:
    rows = make_rows()
    for row, count in zip(rows, (2, 0, None, 3), strict=False):
        row["unreadable_images"] = count
    make_run(tmp_path, rows=rows)
    assert make_report(tmp_path).results["notes"] == ["a: 3 unreadable images were skipped"]
