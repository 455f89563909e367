"""The papers' figures: complete, mapped from our names, and compared only with ours of the same quantity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfms.methods import METHODS
from fedfms.models import BACKBONES
from fedfms.reporting.tables.published import Comparison, compare, papers
from fedfms.reporting.tables.runs import read_runs
from fedfms.reporting.tables.sheets import comparison_sheets
from fedfms.reporting.tables.summary import Block, make_blocks
from fedfms.study import STUDIES
from tests.reporting.tables.make import put, result

PROSTATE = ("BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL")
# Test images by which FedSCA's averages are weighted; of prostate and polyp in proportion to all images.
TESTED = {
    "fed-prostate": (261, 384, 158, 468, 421, 175),
    "fed-polyp": (1000, 196, 379, 612),
    "fed-fundus": (51, 60, 80, 80),
}


def compared(out: Path, contents: Sequence[dict[str, Any]]) -> tuple[Block, list[Comparison]]:
    """Runs of one study, and the comparisons with papers."""
    for content in contents:
        put(out, content)
    (block,) = make_blocks(read_runs(out)[0])
    return block, compare(block)


def test_the_figures_are_complete() -> None:
    fedfms, fedsca = papers()["fedfms"].figures, papers()["fedsca"].figures
    assert (len(fedfms), len(fedsca)) == (696, 272)
    assert fedfms["prostate", "BIDMC", "", "fedmsa", "dice"] == 0.769
    assert fedfms["fundus", "G1020", "OC", "msa", "iou"] == 0.449
    assert fedsca["fed-polyp", "C1", "", "fedsca", "dice"] == pytest.approx(0.895)
    assert all(0 <= value <= 1 for figures in (fedfms, fedsca) for value in figures.values())


def test_fedsca_weighs_its_averages_by_images() -> None:
    figures = papers()["fedsca"].figures
    checked = 0
    for (data, site, _, method, metric), average in figures.items():
        if site == "average":
            weights = TESTED[data]
            values = [figures[data, f"C{i + 1}", "", method, metric] for i in range(len(weights))]
            weighted = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            assert weighted == pytest.approx(average, abs=0.0013), (data, method, metric)
            checked += 1
    assert checked == 8 * 2 * 3


def test_fedfms_averages_are_plain_but_for_fundus() -> None:
    figures = papers()["fedfms"].figures
    checked = 0
    for (data, site, _, method, metric), average in figures.items():
        if site == "average" and data != "fundus":
            values = [
                v for (d, s, _, m, k), v in figures.items() if (d, m, k) == (data, method, metric) and s != "average"
            ]
            assert sum(values) / len(values) == pytest.approx(average, abs=0.0011), (data, method, metric)
            checked += 1
    assert checked == 12 * 2 * 3


def test_every_name_in_the_mapping_is_known_on_both_sides() -> None:
    for paper in papers().values():
        theirs = {key[:2] for key in paper.figures}
        methods = {key[3] for key in paper.figures}
        assert {row.theirs for row in paper.methods} == methods
        assert {row.method for row in paper.methods} <= set(METHODS)
        assert {row.backbone for row in paper.methods} <= set(BACKBONES)
        for name, data in paper.datasets.items():
            study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
            assert {structure["name"] for structure in study["data"]["structures"]} == set(data.structures)
            assert {(data.theirs, site) for site in data.sites.values()} <= theirs
            assert all((data.theirs, site) in theirs for site in data.known_by)
    fedfms = papers()["fedfms"].datasets
    for name, data in fedfms.items():  # FedFMS's sites are those of our studies
        study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
        assert list(data.sites) == study["sites"]


def test_prostate_beside_fedfms(tmp_path: Path) -> None:
    _, (comparison,) = compared(tmp_path, [result("fedmsa", 0, site, sites=PROSTATE) for site in PROSTATE])
    assert (comparison.mode, comparison.columns, comparison.notes) == ("fedfms", PROSTATE, ())
    dice, iou = comparison.sides
    assert (dice.metric, iou.metric, dice.their_name, dice.note) == ("dice", "iou", "fedmsa", "")
    first = dice.pairs[0]
    assert (first.theirs, first.ours.mean) == (0.769, pytest.approx(0.72))
    assert first.difference == pytest.approx(-0.049)
    # 0.9 (0.80 - 0.025) over six sites; the paper prints 0.801.
    assert (dice.average.theirs, dice.average.ours.mean) == (0.801, pytest.approx(0.6975))
    sheet = comparison_sheets(comparison)[0]
    assert [cell.text for cell in sheet.rows[0]][:3] == ["fedmsa", "paper, fedmsa", "0.769"]
    assert [cell.text for cell in sheet.rows[2]][1:3] == ["difference", "-0.049"]


def test_an_average_over_other_sites_is_not_compared(tmp_path: Path) -> None:
    _, (comparison,) = compared(tmp_path, [result("fedmsa", 0, site) for site in ("BIDMC", "HK", "UCL")])
    assert comparison.sides[0].average.theirs is None
    assert comparison.sides[0].pairs[2].theirs == 0.859
    assert comparison.notes == ("The average is not comparable: other sites.",)


def test_a_site_without_a_counterpart_has_no_figure(tmp_path: Path) -> None:
    sites = ("kvasir_seg_vestreviken_no", "polypgen_c1_paris_fr")
    values = {"sites": sites, "dataset": "polyp", "name": "polyp", "structures": ("polyp",)}
    _, (comparison,) = compared(tmp_path, [result("fedsca", 0, None, **values)])
    dice = comparison.sides[0]
    assert comparison.mode == "standard"
    assert [pair.theirs for pair in dice.pairs] == [pytest.approx(0.895), None]
    assert [pair.difference for pair in dice.pairs] == [pytest.approx(0.7 - 0.895), None]
    assert "Without a counterpart in the paper: polypgen_c1_paris_fr." in comparison.notes
    assert dice.average.theirs is None


def test_fedsca_uses_whole_sites_and_weights_by_images(tmp_path: Path) -> None:
    sites = ("BIDMC", "ISBI_1.5", "HK", "I2CVB", "ISBI", "UCL")
    content = result("fedsca", 0, None, sites=sites)
    entries = content["models"]["final"]["sites"]
    for site in sites:
        entries[site]["images"] = 100 if site == "UCL" else 10
    _, (comparison,) = compared(tmp_path, [content])
    average = comparison.sides[0].average
    # 0.70, 0.69, ... 0.66 by 10 images, 0.65 by 100.
    assert average.ours.mean == pytest.approx((10 * (0.70 + 0.69 + 0.68 + 0.67 + 0.66) + 100 * 0.65) / 150)
    assert average.theirs == pytest.approx(0.916)
    entries["HK"]["images"] = None
    _, (comparison,) = compared(tmp_path / "unknown", [content])
    assert comparison.sides[0].average.ours.mean is None


def test_two_structures_are_one_in_fedsca(tmp_path: Path) -> None:
    values = {"sites": ("Drishti-GS1", "ORIGA"), "structures": ("disc", "cup"), "dataset": "fundus"}
    _, (comparison,) = compared(tmp_path, [result("fedsca", 0, None, **values)])
    assert comparison.columns == ("Drishti-GS1", "ORIGA")
    assert comparison.sides[0].pairs[0].ours.mean == pytest.approx(0.65)  # 0.70 and 0.60
    assert comparison.sides[0].pairs[1].theirs is None
    _, (held_out,) = compared(tmp_path / "held", [result("fedmsa", 0, "ORIGA", **values)])
    assert held_out.columns == ("ORIGA OD", "ORIGA OC")
    assert [pair.theirs for pair in held_out.sides[0].pairs] == [0.822, 0.85]


@pytest.mark.parametrize(
    ("method", "model", "theirs", "note"),
    [
        ("fedmsa", {"backbone": "vit_b", "checkpoint": "a.pth"}, "fedmsa", ""),
        ("fedmsa", {"backbone": "vit_l", "checkpoint": "a.pth"}, "fedmsa-l", ""),
        ("fedmsa", {"backbone": "tiny_vit", "checkpoint": "a.pth"}, "fedmsa", "tiny_vit in place of vit_b"),
        ("fedmsa", {"backbone": "vit_b"}, "fedmsa-nopt", ""),
        ("sam", {"backbone": "vit_b"}, "sam-nopt", ""),
        ("fedunet", {"backbone": "unet_tiny"}, "fedunet", "unet_tiny in place of unet"),
    ],
)
def test_which_row_of_the_paper(tmp_path: Path, method: str, model: dict[str, str], theirs: str, note: str) -> None:
    _, (comparison,) = compared(tmp_path, [result(method, 0, "HK", model=model)])
    assert (comparison.sides[0].their_name, comparison.sides[0].note) == (theirs, note)


@pytest.mark.parametrize(
    "values",
    [{"method_options": {"mu": 0.5}}, {"structures": ("bladder",)}, {"dataset": "hippocampus"}],
)
def test_what_the_paper_does_not_have_is_not_compared(tmp_path: Path, values: dict[str, Any]) -> None:
    _, comparisons = compared(tmp_path, [result("fedmsa", 0, "HK", **values)])
    assert comparisons == []
