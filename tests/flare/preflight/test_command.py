"""`fedfms preflight`: exit code, JSON, table, and what its help does not import."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedfms.cli import main
from fedfms.cli.preflight import line, printer, table
from fedfms.flare import preflight as module
from fedfms.flare.preflight import Row

STATES = st.sampled_from(["pass", "warn", "FAIL"])


def _rows(*states: str) -> list[Row]:
    return [Row(f"check {index}", state, "[red]seen", "do") for index, state in enumerate(states)]


@pytest.mark.parametrize(("states", "code"), [(["pass", "warn"], 0), (["pass", "FAIL", "warn"], 1), ([], 0)])
def test_the_exit_code_is_1_if_a_check_fails(
    states: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "preflight", lambda _: iter(_rows(*states)))
    assert main(["preflight", "--kit", str(tmp_path)]) == code
    assert main(["preflight", "--kit", str(tmp_path), "--json"]) == code
    out = capsys.readouterr().out
    content = json.loads(out[out.index("\n{") :])
    assert content["ok"] is (code == 0)
    assert [row["state"] for row in content["checks"]] == states


def test_a_missing_folder_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "--kit", str(tmp_path / "none")]) == 1
    assert main(["preflight", "--kit", str(tmp_path), "--job", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 2 and "--job is not a folder" in error and str(tmp_path) not in error


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "x"])
def test_an_invalid_speed_is_wrong_usage(speed: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["preflight", "--kit", str(tmp_path), f"--mbit={speed}"])


@settings(deadline=None)
@given(st.lists(STATES, max_size=9))
def test_table_and_line_contain_all_rows(states: list[str]) -> None:
    rows = _rows(*states)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(rows))
    text = console.export_text()
    assert all(row.check in text and text.count("[red]seen") == len(rows) for row in rows)
    assert line(rows).startswith(f"{states.count('pass')} of {len(states)} checks pass")
    assert line(rows).count("[red]seen") == len(states) - states.count("pass")


def test_the_first_preflight_is_a_table_and_the_others_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show = printer()
    for site in ("site-1", "site-2"):
        show(site, "fedmsa", _rows("pass", "warn"))
    first, second = capsys.readouterr().out.split("preflight of site-2 for fedmsa:")
    assert "what to do" in first and second.strip() == "1 of 2 checks pass; check 1 warn: [red]seen"


def test_help_imports_neither_nvflare_nor_torch() -> None:
    script = "import sys, fedfms.cli.preflight; print([m for m in ('nvflare', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
