"""The command `fedfms table`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.cli import main
from fedfms.models import build_model
from fedfms.study import STUDIES, ModelSpec
from tests.experiments.make import SMALL

TINY = [text for override in SMALL for text in ("--set", override)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "needs a study and --out"),
        (["phantom"], "needs a study and --out"),
        (["nothing", "--out", "OUT"], "no study and no table 'nothing'; name a YAML file, a study (brain, fundus, "),
        (["nothing", "--on", "phantom", "--out", "OUT"], "or a table (compression, fedfms-fig3, fedfms-fig7, "),
        (["phantom", "--out", "OUT", "--methods", "fedxyz"], "unknown method 'fedxyz'"),
        (["phantom", "--out", "OUT", "--held-out", "site-9"], "site-9"),
        (["phantom", "--out", "OUT", "--sites", "nosuch"], "one of ['site-1', 'site-2', 'site-3', 'site-4'], or --set"),
        (["phantom", "--out", "OUT", "--sites", "nosuch", "--protocol", "personal"], "--sites names ['nosuch']"),
        (["phantom", "--out", "OUT", "--held-out", "site-1", "--protocol", "personal"], "personal holds no site out"),
        (["fundus", "--out", "OUT", "--set", "model.backbone=vit_tiny"], "data_root"),
        (["phantom", "--out", "OUT", "--checkpoint", "gone.pth"], "cannot read checkpoint gone.pth"),
        (["--render", "OUT"], "contains no table"),
        (["phantom", "--out", "FILE", "--dry-run", "--no-estimate"], "--out: FILE is a file; name a folder"),
        (["phantom", "--out", "FILE/below/it", "--no-estimate"], "--out: FILE is a file; name a folder"),
        (
            ["phantom", "--out", ".", "--dry-run", "--no-estimate"],
            "contains other files, and no table; name a",
        ),
    ],
)
def test_errors_are_one_line(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    assert main(["table", *args]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedfms: ")
    assert message in line


def test_the_list_shows_every_table_with_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert "fedfms-table1 (FedFMS, Table 1)" in output
    assert all(f" {path.stem} (" in output for path in (STUDIES / "tables").glob("*.yaml"))


def _weights_of_vit_tiny(path: Path) -> Path:
    spec = ModelSpec(backbone="vit_tiny", input_px=64, prompt="learned")
    torch.save(build_model(spec, 1, adapters=False, seed=9).state_dict(), path)
    return path


@pytest.mark.parametrize("more", [["--dry-run", "--no-estimate"], ["--dry-run"], ["--no-estimate"]])
def test_weights_of_another_backbone_are_an_error_before_any_run(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if they belong to the last variant."""
    weights, out = _weights_of_vit_tiny(tmp_path / "w.pth"), tmp_path / "out"
    table = tmp_path / "table.yaml"
    variants = "{fits: {train.lr: 1.0e-3}, other: {model.backbone: vit_b}}"
    table.write_text(f"study: phantom\nmethods: [fedmsa]\nheld_out: [site-1]\nvariants: {variants}\n")
    assert main(["table", str(table), "--checkpoint", str(weights), "--out", str(out), *TINY, *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedfms: w.pth: does not fit the model: lacks ")
    assert "the study needs vit_b; check model.backbone" in line
    assert not (out / "runs").exists()


def test_missing_weights_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["table", "phantom", "--dry-run", "--no-estimate", "--out", str(tmp_path / "out"), *TINY]
    assert main([*plan, "--checkpoint", str(_weights_of_vit_tiny(tmp_path / "w.pth"))]) == 0
    capsys.readouterr()
    absent = [*plan, "--set", "model.checkpoint=gone.pth"]
    assert main(absent) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "initial weights gone.pth not found; use --checkpoint FILE" in output
    assert "3 from random weights; a federation would send" in output  # U-Net
    absent.remove("--dry-run")
    assert main(absent) == 1
    assert "initial weights gone.pth not found" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_the_options_that_an_error_suggests_for_other_sites_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["table", "phantom", "--methods", "fedmsa", "--dry-run", "--no-estimate", "--out", str(tmp_path / "out")]
    assert main([*plan, "--sites", "a,b"]) == 1
    own = "--set sites=[a,b] --set held_out=[]"
    assert f"or {own} for sites of your own" in " ".join(capsys.readouterr().err.split())
    assert main([*plan, *own.split()]) == 0
    assert "2 runs, " in " ".join(capsys.readouterr().out.split())


def test_a_tables_held_out_sites_apply_to_its_own_protocol_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [
        "table",
        "compression",
        "--dry-run",
        "--no-estimate",
        "--out",
        str(tmp_path / "out"),
        "--protocol",
        "personal",
    ]
    assert main(plan) == 0
    assert "12 runs, 240 rounds" in " ".join(capsys.readouterr().out.split())
    assert main([*plan, "--held-out", "site-3"]) == 1
    assert "held_out names ['site-3'], but the protocol personal holds no site out" in capsys.readouterr().err


def test_without_an_estimate_runs_and_bytes_are_printed_and_options_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the data are missing."""
    plan = ["--dry-run", "--no-estimate", "--out", str(tmp_path / "out")]
    assert main(["table", "fedsca-table4", "--on", "phantom", *plan]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "a federation would send" in output and "no step was timed" in output
    assert main(["table", "fedsca-fig5", "--on", "phantom", *plan]) == 1
    assert "layers is 12; from 1 to 8 with this backbone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_table_is_planned_executed_resumed_and_rendered_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["table", "phantom", "--methods", "fedmsa,msa", "--held-out", "site-1", "--out", str(out), *TINY]
    assert main([*command, "--dry-run"]) == 0
    assert "2 runs, 6 rounds" in " ".join(capsys.readouterr().out.split())
    assert not (out / "runs").exists()
    assert main([*command, "--no-estimate", "--jobs", "2"]) == 0
    made = {name: (out / name).read_bytes() for name in ("table.csv", "table.md", "table.tex", "index.html")}
    assert b"Wilcoxon" in made["index.html"]
    assert main(command) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    for name in made:
        (out / name).unlink()
    assert main(["table", "--render", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in ("table.csv", "table.tex")} == {
        name: made[name] for name in ("table.csv", "table.tex")
    }


def test_a_log_has_a_line_per_run_and_errors_as_they_occur(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "table.log").touch()  # a log of its output may lie there

    def execute_runs(runs: Any, *_: Any, progress: Any, on_error: Any, **__: Any) -> dict[str, str]:
        one, other = (run.name for run in runs)
        progress({one: 1, other: 0})
        progress({one: 3, other: 1})
        on_error(other, "the disk is [full]")
        return {one: "", other: ""}

    monkeypatch.setattr("fedfms.experiments.runner.execute_runs", execute_runs)
    table = ["table", "phantom", "--methods", "fedmsa", "--held-out", "site-1", "--seeds", "0,1", "--no-estimate"]
    assert main([*table, "--out", str(out), *TINY]) == 1
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "1 of 2 runs, 4 of 6 rounds" in lines
    assert lines.index("fedmsa+site-1+seed1: the disk is [full]") > lines.index("1 of 2 runs, 4 of 6 rounds")
