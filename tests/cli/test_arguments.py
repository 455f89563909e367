"""Numbers and paths on the command line that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.cli import main

_BUILD = "job build fedmsa --study phantom --out job"
_PREDICT = "predict --model m.pt --input i --out o"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (f"{_BUILD} --seed -1", "argument --seed: must be a number, 0 or more"),
        (f"{_BUILD} --seed one", "argument --seed: must be a number, 0 or more"),
        (f"{_BUILD} --rounds 0", "argument --rounds: must be a number, 1 or more"),
        (f"{_PREDICT} --batch 0", "argument --batch: must be a number, 1 or more"),
        (f"{_PREDICT} --batch -3", "argument --batch: must be a number, 1 or more"),
        ("table phantom --out o --rounds -2", "argument --rounds: must be a number, 1 or more"),
        ("resume run --threads 0", "argument --threads: must be a number, 1 or more"),
    ],
)
def test_they_are_wrong_usage(command: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    assert capsys.readouterr().err.splitlines()[-1].endswith(says)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("resume below/gone", "resume: there is no folder below/gone; name a run's, a table's or a job's"),
        ("resume below/gone --out job --job-id ID", "resume: there is no folder below/gone; name a run's"),
        (
            "splits polyp --check below/gone.json",
            "the file of splits below/gone.json cannot be read (No such file or directory); name a file that `fedfms",
        ),
    ],
)
def test_what_is_not_there_is_named_in_one_line(
    command: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"fedfms: {says}")
