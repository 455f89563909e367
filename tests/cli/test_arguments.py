"""Invalid numbers and missing paths on the command line; the help of every command."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfms.cli import main, make_parser
from fedfms.cli.options import Parser

_BUILD = "job build fedmsa --study phantom --out job"
_PREDICT = "predict --model m.pt --input i --out o"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{_BUILD} --seed -1", "argument --seed: must be a number, 0 or more"),
        (f"{_BUILD} --seed one", "argument --seed: must be a number, 0 or more"),
        (f"{_BUILD} --rounds 0", "argument --rounds: must be a number, 1 or more"),
        (f"{_PREDICT} --batch 0", "argument --batch: must be a number, 1 or more"),
        (f"{_PREDICT} --batch -3", "argument --batch: must be a number, 1 or more"),
        ("table phantom --out o --rounds -2", "argument --rounds: must be a number, 1 or more"),
        ("resume run --threads 0", "argument --threads: must be a number, 1 or more"),
        ("table phantom --out o --jobs 0", "argument --jobs: must be a number, 1 or more"),
    ],
)
def test_an_invalid_number_is_wrong_usage(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{message}; see `fedfms " in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("resume below/gone", "resume: no folder below/gone; name a run's, a table's or a job's"),
        ("resume below/gone --out job --job-id ID", "resume: no folder below/gone; name a run's"),
        (
            "splits polyp --check below/gone.json",
            "the file of splits below/gone.json cannot be read (No such file or directory); name a file that `fedfms",
        ),
    ],
)
def test_a_missing_path_is_an_error_in_one_line(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedfms: {message}")


def _commands(parser: Parser) -> Iterator[tuple[str, Parser]]:
    parser.complete()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found = list(_commands(command))
                yield from found or [(command.prog, command)]


@pytest.mark.parametrize(("name", "parser"), list(_commands(make_parser())))
def test_every_help_explains_each_option_and_ends_with_an_example(name: str, parser: Parser) -> None:
    *_, heading, example = parser.format_help().splitlines()
    assert heading == "example:"
    assert example.startswith(f"  {name}")
    assert all(action.help for action in parser._actions)
