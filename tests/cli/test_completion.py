"""The completion scripts, read by real shells."""

import os
import shutil
import subprocess
from pathlib import Path

import pexpect
import pytest

from fedfms.cli import main
from fedfms.methods import METHODS

CALL = 'source "$1"; COMP_WORDS=("${@:2}"); COMP_CWORD=$(($# - 2)); _shtab_fedfms; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The script for bash, in a folder with data to name."""
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights.pth").touch()
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], {"prepare", "predict", "preflight"}),
        (["prepare", "p"], {"pairs", "polyp", "prostate"}),
        (["kits", "re"], {"renew", "replace", "request", "revoke"}),
        (["job", "build", "fed"], {name for name in METHODS if name.startswith("fed")}),
        (["job", "build", "fedmsa", "--study", "ph"], {"phantom"}),
        (["job", "build", "fedmsa", "--study", "weights"], {"weights", "weights.pth"}),
        (["job", "build", "fedmsa", "--preset", "pa"], {"paper"}),
        (["job", "build", "fedmsa", "--check"], {"--checkpoint"}),
        (["job", "build", "fedmsa", "--checkpoint", "w"], {"weights", "weights.pth"}),
        (["job", "build", "fedmsa", "--out", "w"], {"weights"}),
        (["table", "fedsca-table4"], {"fedsca-table4"}),
        (["predict", "--depth", ""], {"coarsest", "third"}),
    ],
)
def test_bash_completes(words: list[str], expected: set[str], script: Path) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", CALL, "bash", str(script), "fedfms", *words],
        cwd=script.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(done.stdout.split()) == expected
    assert not done.stderr


def test_the_tab_key_completes_in_an_interactive_bash(script: Path) -> None:
    options = {"dimensions": (24, 300), "encoding": "utf-8", "timeout": 10, "env": os.environ | {"TERM": "dumb"}}
    with pexpect.spawn("bash", ["--norc", "-i"], cwd=script.parent, **options) as shell:
        shell.sendline("PS1=ready'>'; source ./script")
        shell.expect_exact("ready>")
        shell.send("fedfms prepa\tpa\t--ru\tweights.\t")
        shell.expect_exact("fedfms prepare pairs --rule weights.pth ")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_for_another_shell_names_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("preflight", "prepare", "pairs", "revoke", "fedmsa", "phantom", "--checkpoint")
    )
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=text, text=True, check=True)


def test_an_unknown_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "csh"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedfms completion: argument shell: invalid choice: 'csh'")
