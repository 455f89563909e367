"""`fedfms table` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.cli import main
from tests.grid.make import SMALL

TINY = [text for override in SMALL for text in ("--set", override)]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "needs a study and --out"),
        (["phantom"], "needs a study and --out"),
        (["phantom", "--out", "OUT", "--jobs", "0"], "--jobs must be 1 or more"),
        (["nothing", "--out", "OUT"], "no study 'nothing'"),
        (["phantom", "--out", "OUT", "--methods", "fedxyz"], "unknown method 'fedxyz'"),
        (["phantom", "--out", "OUT", "--held-out", "site-9"], "site-9"),
        (["fundus", "--out", "OUT", "--set", "model.backbone=vit_tiny"], "data_root"),
        (["phantom", "--out", "OUT", "--checkpoint", "gone.pth"], "cannot read checkpoint gone.pth"),
        (["--render", "OUT"], "holds no table"),
    ],
)
def test_faults_are_one_line(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["table", *args]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("fedfms: ")
    assert says in told[0]


def test_without_an_estimate_runs_and_bytes_are_told_and_options_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a data set that is not here, too."""
    plan = ["--dry-run", "--no-estimate", "--out", str(tmp_path / "out")]
    assert main(["table", "fedsca-table4", "--on", "phantom", *plan]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "a federation would send" in told and "nothing was timed" in told
    assert main(["table", "fedsca-fig5", "--on", "phantom", *plan]) == 1
    assert "layers is 12; from 1 to 8 with this backbone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_table_is_planned_made_gone_on_with_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["table", "phantom", "--methods", "fedmsa,msa", "--held-out", "site-1", "--out", str(out), *TINY]
    assert main([*command, "--dry-run"]) == 0
    assert "2 runs, 6 rounds" in " ".join(capsys.readouterr().out.split())
    assert not (out / "cells").exists()
    assert main([*command, "--no-estimate", "--jobs", "2"]) == 0
    made = {name: (out / name).read_bytes() for name in ("table.csv", "table.md", "table.tex", "index.html")}
    assert b"Wilcoxon" in made["index.html"]
    assert main(command) == 0
    assert "2 of 2 runs are there already" in capsys.readouterr().out
    for name in made:
        (out / name).unlink()
    assert main(["table", "--render", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in ("table.csv", "table.tex")} == {
        name: made[name] for name in ("table.csv", "table.tex")
    }
