"""The report of a run that was written by hand, against numbers computed by hand."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from fedfms.reporting import Report, make_report, render_text
from fedfms.reporting.table import footnotes
from fedfms.study import Study

from .make import MB, REJECTED, make_models, make_row, make_rows, make_run, make_scores, make_study


@pytest.fixture
def report(tmp_path: Path) -> Report:
    make_run(tmp_path)
    return make_report(tmp_path)


def test_the_reports_files_are_in_the_runs_folder(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "server" / "simulate_job" / "fedfms" / "report"
    assert report.paths == [folder / name for name in ("results.json", "table.md", "curves.png", "config.yaml")]
    assert sorted(folder.iterdir()) == sorted(report.paths)
    assert json.loads((folder / "results.json").read_text()) == report.results
    assert Study.from_dict(yaml.safe_load((folder / "config.yaml").read_text())) == make_study()


def test_another_folder(tmp_path: Path) -> None:
    records = make_run(tmp_path / "ws")
    report = make_report(tmp_path / "ws", tmp_path / "new" / "out")
    assert {path.parent for path in report.paths} == {tmp_path / "new" / "out"}
    assert not (records / "report").exists()


def test_a_report_made_again_is_the_same(report: Report, tmp_path: Path) -> None:
    before = [path.read_bytes() for path in report.paths]
    assert [path.read_bytes() for path in make_report(tmp_path).paths] == before


@pytest.mark.parametrize("inside", ["", "server", "server/simulate_job", "server/simulate_job/fedfms"])
def test_a_run_is_found_from_any_folder_of_it(inside: str, tmp_path: Path) -> None:
    make_run(tmp_path)
    report = make_report(tmp_path / inside)
    assert report.results["study"] == "eyes"
    assert report.results["overlays"] == {"a/simulate_job/fedfms/overlays": 2}


def test_results_describe_the_run(report: Report) -> None:
    got = {key: report.results[key] for key in ("format", "study", "method", "backbone", "seed", "rounds", "complete")}
    assert got == {
        "format": 1, "study": "eyes", "method": "fedmsa", "backbone": "vit_b", "seed": 7,
        "rounds": {"planned": 3, "done": 3}, "complete": True,
    }  # fmt: skip
    assert report.results["model"] == {"input_px": 1024, "mask_px": 256}


def test_scores_by_hand(report: Report) -> None:
    before, final, best = report.results["before"], *(report.results["models"][name] for name in ("final", "best"))
    assert (before["round"], final["round"], best["round"]) == (0, 3, 2)
    # Site a, final: disc 0.75, cup 0.75; IoU half of it, the other mode 0.9 of it.
    scores = final["sites"]["a"]["scores"]
    assert scores["standard"] == {"dice": 0.75, "iou": 0.375}
    assert scores["fedfms"] == pytest.approx({"dice": 0.675, "iou": 0.3375})
    assert (scores["images"], scores["empty"]) == (4, {"disc": 0, "cup": 0})
    # Over the sites that train: (0.75 + (0.5 + 0.75) / 2) / 2; by structure (0.75 + 0.5) / 2 and (0.75 + 0.75) / 2.
    assert final["mean"]["standard"]["dice"] == 0.6875
    by_structure = final["mean"]["by_structure"]["standard"]
    assert (by_structure["disc"]["dice"], by_structure["cup"]["dice"]) == (0.625, 0.75)
    assert (final["mean"]["scored"], final["mean"]["sites"]) == (2, 2)
    assert final["mean_held_out"]["standard"]["dice"] == 0.75
    # Before: a (0.25 + 0) / 2, b (0.5 + 0.25) / 2; at c no image has a cup, so its mean is that of the disc.
    assert before["mean"]["standard"]["dice"] == 0.25
    assert before["sites"]["c"]["scores"]["standard"]["dice"] == 0.0
    assert before["sites"]["c"]["scores"]["empty"] == {"disc": 0, "cup": None}
    # b reported no scores of the best model: the mean is that of a, and says so.
    assert best["sites"]["b"]["scores"] is None
    assert best["mean"]["standard"]["dice"] == 0.625
    assert (best["mean"]["scored"], best["mean"]["sites"]) == (1, 2)


def test_curves_by_hand(report: Report) -> None:
    curves = report.results["curves"]
    assert curves["rounds"] == [0, 1, 2, 3]
    sites = curves["sites"]
    assert sites["a"]["dice"] == [0.125, 0.5, 0.625, 0.75]
    assert sites["b"]["dice"] == [0.375, 0.375, None, 0.625]
    assert sites["c"]["dice"] == [0.0, 0.375, 0.5, 0.75]
    assert curves["mean_dice"] == [0.25, 0.4375, 0.625, 0.6875]  # without the held-out c
    assert sites["a"]["train_loss"] == [None, 1.0, 1 / 2, 1 / 3]
    assert sites["b"]["train_loss"] == [None, 1.0, 1 / 2, None]
    assert [site for site, curve in sites.items() if curve["held_out"]] == ["c"]


def test_bytes_and_seconds_by_hand(report: Report) -> None:
    sent = report.results["bytes"]
    assert [(row["round"], row["up"], row["down"]) for row in sent["by_round"]] == [
        (0, 2 * MB, 3 * MB), (1, MB, 3 * MB), (2, MB, 2 * MB),
    ]  # fmt: skip
    assert (sent["up"], sent["down"], sent["total"]) == (4 * MB, 8 * MB, 12 * MB)
    assert report.results["seconds"] == {"a": 7.5, "b": 5.0, "c": 0.0}


def test_participation_by_hand(report: Report) -> None:
    assert report.results["participation"] == {
        "a": {"held_out": False, "rounds": [0, 1, 2], "missed": {}},
        "b": {"held_out": False, "rounds": [0], "missed": {"1": REJECTED, "2": "did not answer"}},
        "c": {"held_out": True, "rounds": [], "missed": {}},
    }
    assert report.first_line.plain == (
        "valid: 1 of 2 sites in 3 of 3 rounds; in all of them: a; held out: c; "
        f"b missed 2 of 3 (round 1: {REJECTED}; round 2: did not answer)"
    )


@pytest.mark.slow
def test_rounds_missed_for_the_same_reason_are_grouped(tmp_path: Path) -> None:
    rows = [make_row(r, "a", None) for r in range(7)]
    rows += [make_row(r, "b", None, reason="late") for r in (1, 2, 3, 5)] + [make_row(0, "b", None)]
    make_run(tmp_path, rows=rows, models={})
    line = make_report(tmp_path).first_line.plain
    assert "b missed 6 of 7 (round 1-3, 5: late; round 4, 6: did not answer)" in line


def test_markdown_has_every_row(report: Report) -> None:
    text = report.paths[1].read_text()
    lines = text.splitlines()
    assert lines[0] == "# Disc and cup"
    assert lines[2].startswith("valid: 1 of 2 sites in 3 of 3 rounds; in all of them: a; held out: c; b missed 2 of 3")
    assert "| a | disc | 0.250 | 0.750 | 0.375 | 0.675 | 0.338 | 4 | 0 |" in lines
    assert "| a | mean | 0.125 | 0.750 | 0.375 | 0.675 | 0.338 |  |  |" in lines
    suppressed = "suppressed (fewer than 1 images)"  # before: the cup is in none
    assert f"| c (held out) | cup | {suppressed} | 0.500 | 0.250 | 0.450 | 0.225 | 10 | 0 |" in lines
    assert "| mean, sites that train | mean | 0.250 | 0.688 | 0.344 | 0.619 | 0.309 |  |  |" in lines
    assert "| mean, 1 of the 2 sites that train | disc | 0.250 | 0.750 | 0.375 | 0.675 | 0.338 |  |  |" in lines
    assert "| b | no scores | - | - | - | - | - | - | - |" in lines  # of the best model
    assert "Scored on: validation images of the sites that train; all images of the held-out sites." in text
    assert "12.0 MB were sent in the rounds: 4.0 MB up, 8.0 MB down." in text
    assert "2 in a/simulate_job/fedfms/overlays." in text
    assert "final_0" not in text  # how many and where, no more


def test_a_small_number_of_bytes_has_a_small_unit(tmp_path: Path) -> None:
    rows = [make_row(0, site, make_scores(0.5, 0.5)) for site in ("a", "b")]
    run = make_run(tmp_path, rows=[{**row, "bytes_up": 18_912, "bytes_down": 0} for row in rows]) / "run.json"
    parameters = {"total": 1_000_000, "trained": 250_000, "shared": 4_728, "shared_mb": 0.018912}
    run.write_text(json.dumps({**json.loads(run.read_text()), "parameters": parameters}))
    make_report(tmp_path)
    text = (run.parent / "report" / "table.md").read_text()
    assert "4,728 parameters are shared, 18.9 kB a site, round" in text
    assert "37.8 kB were sent in the rounds: 37.8 kB up, 0.0 MB down." in text


def test_suppressed_scores_are_marked_and_in_no_mean(tmp_path: Path) -> None:
    rows = [make_row(0, "a", make_scores(0.5, 0.5)), make_row(0, "b", make_scores(0.25, 0.5, min_cases=5))]
    models = {"final": {"round": 1, "sites": {row["site"]: {"scores": row["scores"], "part": "val"} for row in rows}}}
    make_run(tmp_path, rows=rows, models=models)
    report = make_report(tmp_path)
    assert report.results["notes"] == []
    suppressed = report.results["models"]["final"]["sites"]["b"]["scores"]
    assert (suppressed["images"], suppressed["min_cases"], suppressed["standard"]["dice"]) == (4, 5, None)
    mean = report.results["models"]["final"]["mean"]
    assert (mean["standard"]["dice"], mean["scored"], mean["sites"]) == (0.5, 1, 2)
    assert report.results["curves"]["sites"]["b"]["dice"] == [None, None]
    why = "suppressed (fewer than 5 images)"
    lines = report.paths[1].read_text().splitlines()
    assert f"| b | disc | {why} | {why} | - | {why} | - | - | - |" in lines
    assert "| mean, 1 of the 2 sites that train | disc | 0.500 | 0.500 | 0.250 | 0.450 | 0.225 |  |  |" in lines
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "suppressed" in shown
    assert "(fewer" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_volumes_have_columns_if_a_site_has_volumes(tmp_path: Path) -> None:
    rows = [make_row(0, "a", make_scores(0.5, 1.0, images=6, volumes=3)), make_row(0, "b", make_scores(0.5, 0.5))]
    models = {"final": {"round": 1, "sites": {row["site"]: {"scores": row["scores"], "part": "val"} for row in rows}}}
    make_run(tmp_path, rows=rows, models=models)
    report = make_report(tmp_path)
    lines = report.paths[1].read_text().splitlines()
    assert lines[6].endswith("| images | empty | Dice (volume) | IoU (volume) | volumes |")
    assert "| a | cup | 1.000 | 1.000 | 0.500 | 0.900 | 0.450 | 6 | 0 | 0.250 | 0.125 | 3 |" in lines
    assert "| a | mean | 0.750 | 0.750 | 0.375 | 0.675 | 0.338 |  |  | 0.188 | 0.094 |  |" in lines
    assert "| b | cup | 0.500 | 0.500 | 0.250 | 0.450 | 0.225 | 4 | 0 | - | - |  |" in lines
    mean = report.results["models"]["final"]["mean"]
    assert mean["volume"] == {"dice": 0.1875, "iou": 0.09375}  # of a, which has volumes
    assert mean["by_structure"]["volume"]["cup"] == {"dice": 0.25, "iou": 0.125}


def test_scores_of_an_earlier_version_have_no_spread_and_no_min_cases(tmp_path: Path) -> None:
    def earlier(scores: dict[str, Any]) -> dict[str, Any]:
        row = {"dice": 0.5, "iou": 0.25, "images": 3}
        modes = {"standard": {name: row | {"empty": 1} for name in ("disc", "cup")}}
        modes["standard"]["cup"] = {"dice": None, "iou": None, "images": 0, "empty": 4}
        return modes | {"fedfms": dict.fromkeys(("disc", "cup"), row), "images": scores["images"]}

    make_run(tmp_path, rows=[make_row(0, "a", earlier(make_scores(0.5, 0.5)))], models={})
    report = make_report(tmp_path)
    assert report.results["notes"] == []
    assert "| a | cup | - | - | - | 0.500 | 0.250 | 0 | 4 |" in report.paths[1].read_text().splitlines()


def test_the_terminal_shows_the_same_and_reads_no_markup(report: Report) -> None:
    text = render_text(report)
    assert text.startswith("valid: 1 of 2 sites in 3 of 3 rounds")
    assert REJECTED in " ".join(text.split())  # with its [3, 4]
    for cell in ("c (held out)", "0.688", "final model, 3 rounds", "best model, 2 rounds"):
        assert cell in text
    console = Console(file=io.StringIO(), width=200)
    console.print(report.first_line)
    console.print(report.table)


def test_overlays_of_many_sites_are_one_line() -> None:
    many = {f"{site}/simulate_job/fedfms/overlays": 4 for site in "abc"}
    start = "Overlays stay at the sites that drew them: "
    assert footnotes({"overlays": many, "notes": []}) == [
        f"{start}4 in SITE/simulate_job/fedfms/overlays of each of 3 sites."
    ]  # fmt: skip
    assert footnotes({"overlays": {"a/x": 2, "b/x": 4}, "notes": []}) == [f"{start}2 in a/x, 4 in b/x."]
    assert footnotes({"overlays": {}, "notes": []}) == []


def test_one_structure_has_no_row_of_means(tmp_path: Path) -> None:
    def only_disc(scores: dict[str, Any]) -> dict[str, Any]:
        return scores | {mode: {"disc": scores[mode]["disc"]} for mode in ("standard", "fedfms")}

    rows = [row | {"scores": only_disc(row["scores"])} for row in make_rows()]
    models = make_models()
    for model in models.values():
        for entry in model["sites"].values():
            entry["scores"] = only_disc(entry["scores"])
    make_run(tmp_path, study=make_study(data={"structures": [{"name": "disc"}]}), rows=rows, models=models)
    report = make_report(tmp_path)
    assert report.results["models"]["final"]["mean"]["standard"]["dice"] == 0.625
    text = report.paths[1].read_text()
    assert "| mean |" not in text
    assert "| mean, sites that train | disc |" in text


def test_curves_are_a_picture(report: Report) -> None:
    with Image.open(report.paths[2]) as picture:
        assert picture.format == "PNG"
        assert (picture.width, picture.height) == (1210, 462)
        assert len(picture.convert("RGB").getcolors(maxcolors=1_000_000) or []) > 50


@pytest.mark.parametrize("sites", [0, 1, 12])
def test_curves_of_few_and_many_sites(sites: int, tmp_path: Path) -> None:
    names = [f"_hospital ${index}$ x^" for index in range(sites)]  # what matplotlib might take for a formula
    rows = [make_row(r, name, make_scores(0.5, 0.5)) for r in range(2) for name in names]
    make_run(tmp_path, study=make_study(sites=[], held_out=[]), rows=rows, finished=False)
    with Image.open(make_report(tmp_path).paths[2]) as picture:
        assert picture.width == 1210
