"""Figures: which points they hold, and the same bytes every time."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from fedfms.experiments.plan import load_experiment
from fedfms.reporting.tables import write_tables
from fedfms.reporting.tables.plots import Series, _curves, ablations, curves, line_plot, shifts
from fedfms.reporting.tables.runs import read_runs
from fedfms.reporting.tables.summary import Block, make_blocks
from fedfms.study import STUDIES
from tests.reporting.tables.make import fill, put, result

TABLES = (STUDIES / "tables").glob("*.yaml")
PNG = b"\x89PNG\r\n\x1a\n"


def block_of(out: Path) -> Block:
    (block,) = make_blocks(read_runs(out)[0])
    return block


def texts(svg: bytes) -> list[str]:
    """All texts of an SVG, which must be whole XML."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_curves_by_hand(tmp_path: Path) -> None:
    block = block_of(fill(tmp_path))
    fedmsa = _curves(block)[0]
    assert (fedmsa.label, fedmsa.x) == ("fedmsa", (0.0, 1.0, 2.0, 3.0))
    # On the held-out site, of six runs: 0.80, 0.84, 0.79, 0.83, 0.78, 0.82 in the last round.
    assert fedmsa.y == pytest.approx((0, 0.27, 0.54, 0.81))
    assert fedmsa.spread[3] == pytest.approx((sum(d * d for d in (1, 3, 2, 2, 3, 1)) / 5) ** 0.5 / 100)
    figure = curves([block])
    assert figure.png.startswith(PNG)
    assert {"fedmsa", "fedunet", "msa", "rounds done", "Dice"} <= set(texts(figure.svg))
    assert "fedmsa from 0.000 at 0 to 0.810 at 3" in figure.description


def test_only_rounds_of_all_runs_are_drawn(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 0, "HK"))
    content = result("fedmsa", 1, "HK")
    content["curve"] = [point for point in content["curve"] if point["round"] != 2]
    content["curve"][0]["dice"]["HK"] = None
    put(tmp_path, content)
    assert [series.x for series in _curves(block_of(tmp_path))] == [(1.0, 3.0)]


def test_a_site_without_a_curve_is_excluded_from_the_mean(tmp_path: Path) -> None:
    content = result("fedsca", 0, None)
    for point in content["curve"]:
        point["dice"]["UCL"] = None
    put(tmp_path, content)
    assert _curves(block_of(tmp_path))[0].y[-1] == pytest.approx(0.695)  # of 0.70 and 0.69


def test_a_figure_without_curves_says_so(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 0, "HK") | {"curve": []})
    figure = curves([block_of(tmp_path)])
    assert "nothing to draw" in texts(figure.svg)
    assert figure.description.endswith("nothing to draw.")


def test_an_ablation_by_hand(tmp_path: Path) -> None:
    for variant, options in (("", {}), ("layers=1", {"layers": 1}), ("layers=12", {"layers": 12}), ("kind=l1", {})):
        put(tmp_path, result("fedsca", 0, None, variant, method_options=options))
    (figure,) = ablations(block_of(tmp_path))
    assert figure.name == "ablation-prostate-layers"
    assert "fedsca, standard from 0.690 at 1 to 0.690 at 12" in figure.description
    assert "fedsca, fedfms from 0.621 at 1 to 0.621 at 12" in figure.description
    assert {"Dice", "IoU", "layers", "average, 0..1"} <= set(texts(figure.svg))


def test_a_single_number_is_no_figure(tmp_path: Path) -> None:
    put(tmp_path, result("fedsca", 0, None, "layers=4"))
    put(tmp_path, result("fedsca", 1, None, "layers=4"))
    assert ablations(block_of(tmp_path)) == []


@pytest.mark.parametrize(
    ("x", "log"), [((0.001, 0.1, 10.0), True), ((1.0, 4.0, 24.0), False), ((0.0, 1.0, 99.0), False)]
)
def test_numbers_over_decades_get_a_log_axis(x: tuple[float, ...], log: bool) -> None:
    figure = line_plot("f", "t", [("p", [Series("a", x, (0.1, 0.2, 0.3), (None, 0.1, 0.1))])], "beta", "Dice")
    assert ({f"{value:g}" for value in x} <= set(texts(figure.svg))) == log


def test_names_are_read_neither_as_formulas_nor_as_markup() -> None:
    series = [Series("$x_$ <b> & _y", (1.0, 2.0), (0.1, 0.2)), Series("_hidden", (1.0, 2.0), (0.1, 0.2))]
    figure = line_plot("f", "a $ title", [("p <script>", series)], "x", "y")
    shown = texts(figure.svg)
    assert {"$x_$ <b> & _y", "a $ title", "p <script>"} <= set(shown)
    assert any("_hidden" in text for text in shown)


@pytest.mark.slow
def test_many_lines_have_distinct_marks_and_the_same_bytes() -> None:
    series = [Series(f"method {i}", (0.0, 1.0, 2.0), (0.1, 0.2, 0.01 * i)) for i in range(14)]
    first, second = (line_plot("f", "t", [("p", series)], "x", "y") for _ in range(2))
    assert (first.png, first.svg) == (second.png, second.svg)
    assert {f"method {i}" for i in range(14)} <= set(texts(first.svg))


def test_layer_shifts_are_a_figure_if_runs_record_them(tmp_path: Path) -> None:
    put(tmp_path, result("fedmsa", 4, "HK"))
    assert shifts(block_of(tmp_path)) == []
    moved = [{"blocks.0": 0.25, "mask_decoder": 0.5}, {"blocks.0": 0.75, "mask_decoder": 0.5}]
    content = result("fedmsa", 5, "HK")
    for point, shift in zip(content["curve"], moved, strict=False):
        point["shift"] = shift
    put(tmp_path, content)
    (figure,) = shifts(block_of(tmp_path))
    assert figure.name.startswith("shift-")
    assert "fedmsa from 0.500 at 1 to 0.500 at 2" in figure.description


@pytest.mark.slow
def test_the_labels_of_every_committed_table_can_be_drawn_and_written(tmp_path: Path) -> None:
    labels = {label for path in TABLES for label in load_experiment(str(path)).variants}
    assert {"", "-PT", "L=4", "decoder shared", "l2"} <= labels
    for label in sorted(labels):
        put(tmp_path, result("fedsca", 0, None, variant=label))
    assert write_tables(tmp_path, "a command").missing == 0
    assert len(list(tmp_path.glob("ablation-*-L.svg"))) == len(list(tmp_path.glob("ablation-*-beta.svg"))) == 1
