"""`fedfms cost`: golden numbers, the papers' units, every method on the phantom, and timing in a subprocess."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedfms.cli import main
from fedfms.errors import TrainingError
from fedfms.methods import METHODS
from fedfms.reporting.cost import Timed, make_cost, published, timing
from fedfms.reporting.cost.show import VIEWS, markdown
from fedfms.reporting.cost.step import Work
from fedfms.reporting.cost.traffic import plan_traffic
from fedfms.settings import SiteSettings
from fedfms.study import load_study
from tests.methods.common import STUDIES, study

PAPERS_MILLIONS = 14.73  # 56.2 MiB of float32
_CPU = SiteSettings(device="cpu")
_WORK = Work(6 * 10**12, 7 * 10**12, 5 * 10**12, 10**11, 2**20)


@pytest.fixture
def no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfms.reporting.cost.step_work", lambda study: _WORK)
    monkeypatch.setattr("fedfms.reporting.cost.estimate", lambda study, settings: 2**31)


def _paper(dataset: str, method: str, **values: Any) -> Any:
    return load_study(STUDIES / f"{dataset}.yaml", method=method, preset="paper", **values)


def test_golden_numbers_of_vit_b_at_1024(no_counting: None) -> None:
    rows = make_cost([_paper("fundus", method) for method in ("fedmsa", "fedsam")], None)["rows"]
    assert [(row["trained"], row["shared"]) for row in rows] == [(11_026_666,) * 2, (93_596_650,) * 2]
    msa = rows[0]
    assert (msa["backbone"], msa["input_px"], msa["batch"], msa["structures"]) == ("vit_b", 1024, 6, 2)
    assert msa["up_mb"] == msa["down_mb"] == pytest.approx(11_026_666 * 4 / 1e6)
    assert msa["study_up_mb"] == pytest.approx(4 * 100 * 11_026_666 * 4 / 1e6)
    assert msa["trained_mib"] == pytest.approx(11_026_666 * 4 / 2**20)
    assert msa["need_mib"] == 2048
    assert msa["slice_tflop"] * 6 == pytest.approx(msa["step_tflop"]) == 13


def _figures(quantity: str) -> dict[str, published.Figure]:
    table = published.tables()[1]
    return {row.label: row for row in table.rows if row.quantity == quantity}


def test_the_formula_gives_fedscas_table_3() -> None:
    """Parameters x 4 sites x 100 rounds / 2^30, one direction; shares of the printed 5.5."""
    setting = published.tables()[1].setting
    assert (setting.sites, setting.rounds) == (4, 100)
    learnable, sent = _figures("learnable"), _figures("communicated")
    for label, millions in (("FedAvg", PAPERS_MILLIONS), ("FedProx", PAPERS_MILLIONS), ("FedAvg-F", 93.69)):
        assert round(millions * 1e6 * 4 / 2**20, 1) == learnable[label].value
        assert round(published.sent_over(millions * 1e6, 4, 100) / 2**30, 1) == sent[label].value
    for label in ("FedRA", "FedSA"):
        part, whole = sent[label].share_of_all
        assert sent[label].value == pytest.approx(sent["FedAvg"].value * part / whole, abs=0.0501)
    part, whole = sent["FedSCA"].share_of_all
    assert round(sent["FedAvg"].value * 1024 * part / whole, 1) == sent["FedSCA"].value == 156.4


def test_printed_figures_are_their_values() -> None:
    for table in published.tables():
        for row in table.rows:
            assert float(re.sub(r"[^0-9.]", "", row.printed)) == row.value
            assert row.unit in published._UNITS
            assert row.method in METHODS


def test_our_figures_are_in_the_papers_unit(no_counting: None) -> None:
    """Seven sites in the study; four, as the paper has, in the comparison."""
    cost = make_cost([_paper("polyp", "fedsca"), _paper("polyp", "fedmsa")], None)
    found = {(row["label"], row["quantity"]): row for row in cost["papers"]}
    sent = found["FedSCA", "communicated"]
    assert sent["ours"] == pytest.approx(295_872 * 400 / 2**20)
    assert sent["ours_mb"] == pytest.approx(295_872 * 400 * 4 / 1e6)
    assert sent["paper_mb"] == pytest.approx(156.4 * 2**20 * 4 / 1e6)
    assert found["FedAvg", "learnable"]["ours"] == pytest.approx(10_607_232 * 4 / 2**20)
    assert found["FedMSA", "forward + backward"]["ours"] == pytest.approx(_WORK.by_layers / 1e12)
    assert found["FedMSA", "GPU memory"]["ours"] is None  # nothing was measured on a GPU
    assert [row["sites"] for row in cost["rows"]] == [7, 7]


def test_only_the_papers_own_setting_is_compared(no_counting: None) -> None:
    smaller = _paper("polyp", "fedmsa", **{"model.input_px": 512})
    found = {row["quantity"]: row["ours"] for row in make_cost([smaller], None)["papers"]}
    assert found["forward + backward"] is None
    assert found["learnable"] is not None
    four = _paper("polyp", "fedsca", method_options={"layers": 4})
    assert make_cost([four, _paper("polyp", "fedmsa", **{"model.backbone": "vit_l"})], None)["papers"] == []
    full = make_cost([_paper("polyp", "fedprox", method_options={"full": True})], None)
    assert {row["label"] for row in full["papers"]} == {"FedProx-F"}
    assert full["rows"][0]["method"] == "fedprox:full=true"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_a_row_that_agrees_with_the_plan(method: str, no_counting: None) -> None:
    made = study(method, "sites=[a, b]")
    cost = make_cost([made], None)
    (row,), traffic = cost["rows"], plan_traffic(made)
    assert row["method"] == method
    assert (row["trained"], row["parameters"]) == (traffic.trained, traffic.parameters)
    if METHODS[method].centralised:
        assert row["shared"] is row["up_mb"] is row["study_mb"] is None
    else:
        assert (row["shared"], row["up_mb"], row["down_mb"]) == (traffic.shared, traffic.up_mb, traffic.down_mb)
        assert row["study_up_mb"] + row["study_down_mb"] == pytest.approx(row["study_mb"]) == traffic.total_mb
    assert json.loads(json.dumps(cost, allow_nan=False)) == cost
    assert f"| {method} |" in markdown(cost)


def test_job_build_and_cost_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_counting: None) -> None:
    assert main(["job", "build", "fedsa", "--study", "phantom", "--sites", "a,b,c", "--out", str(tmp_path / "j")]) == 0
    printed = capsys.readouterr().out
    command = ["cost", "phantom", "--methods", "fedsa", "--sites", "3", "--no-time", "--json", str(tmp_path / "c.json")]
    assert main(command) == 0
    row = json.loads((tmp_path / "c.json").read_text())["rows"][0]
    assert f"{row['trained']:,} parameters trained, {row['shared']:,} shared" in printed
    assert f"{row['up_mb']:,.2f} MB up and {row['down_mb']:,.2f} MB down" in printed
    assert f"{row['study_mb']:,.1f} MB in all" in printed


@pytest.mark.slow
def test_a_step_is_timed_in_a_subprocess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cost", "phantom", "--methods", "fedprox,fedra:fraction=0.5", "--set", "model.input_px=64"]
    assert main([*command, "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "new")]) == 0
    cost = json.loads((tmp_path / "new" / "cost.json").read_text())
    assert [row["method"] for row in cost["rows"]] == ["fedprox", "fedra:fraction=0.5"]
    for row in cost["rows"]:
        assert row["step_s"] > 0
        assert row["predict_s"] > 0
        assert row["peak_mib"] > row["base_mib"] > 0
        assert row["device"] == "cpu"
    page = (tmp_path / "new" / "cost.md").read_text()
    assert all(view.legend in page for name, view in VIEWS.items() if name != "papers")  # none of vit_tiny


def test_what_cannot_be_timed_is_a_note(monkeypatch: pytest.MonkeyPatch, no_counting: None) -> None:
    made = study("fedmsa")
    late = make_cost([made], Timed(steps=1, timeout_s=0.01, device="cpu"))
    assert late["rows"][0]["step_s"] is None
    assert late["notes"][0].startswith("fedmsa: not measured within 0.01 s")
    monkeypatch.setattr("fedfms.reporting.cost.estimate", lambda study, settings: 2**60)
    assert "a step may take 1,649,267,442,064 MiB" in make_cost([made], Timed(device="cpu"))["notes"][0]


@pytest.mark.slow
def test_an_error_of_the_subprocess_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="starts from gone.pth, but this site names no checkpoint folder"):
        timing.measure_in_subprocess(study("fedmsa", "model.checkpoint=gone.pth"), _CPU, 1, 100)
    monkeypatch.setattr(timing, "_CHILD", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(TrainingError, match=r"ended with -9; if it ran out of memory"):
        timing.measure_in_subprocess(study("fedmsa"), _CPU, 1, 100)


@pytest.mark.slow
def test_errors_of_the_command_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for more, message in [
        (["--methods", "fedbest"], "unknown method 'fedbest'"),
        (["--methods", "fedmsa:layers=1"], "unknown option 'layers'"),
        (["--backbone", "vit_x"], "unknown backbone"),
        (["--preset", "best"], "unknown preset"),
        (["--out", str(file)], "cannot write cost.json"),
    ]:
        assert main(["cost", "phantom", "--no-time", *more]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error
        assert str(tmp_path) not in error
    with pytest.raises(SystemExit):
        main(["cost", "phantom", "--sites", "0"])
