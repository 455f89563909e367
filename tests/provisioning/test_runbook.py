"""The commands, files and links in the runbook exist."""

import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest

from fedfms.cli import make_parser

REPO = Path(__file__).parents[2]
RUNBOOK = (REPO / "provisioning" / "RUNBOOK.md").read_text()
PROGRAMS = ("fedfms kits", "fedfms prepare", "fedfms")
COMMAND = re.compile(rf"(?:^|`)({'|'.join(PROGRAMS)}) ([^`#\n>]+)", re.M)
# `fedfms NAME` within a line names a command
COMMANDS = sorted({
    (found[1], found[2].strip() + (" --help" if re.fullmatch(r"`fedfms \w+", found[0]) else ""))
    for found in COMMAND.finditer(RUNBOOK)
})  # fmt: skip


def test_the_runbook_has_the_main_commands() -> None:
    assert {command.split()[0] for program, command in COMMANDS if program == "fedfms"} >= {
        "preflight", "submit", "resume", "report",
    }  # fmt: skip
    assert {command.split()[0] for program, command in COMMANDS if program == "fedfms kits"} >= {
        "open", "verify", "request", "package", "allow",
        "template", "make", "add", "approve", "replace", "expiry", "renew", "revoke",
    }  # fmt: skip


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_a_command_is_valid(program: str, command: str) -> None:
    with pytest.raises(SystemExit, match="^0$") if command.endswith("--help") else nullcontext():
        make_parser().parse_args(shlex.split(f"{program} {command}")[1:])


@pytest.mark.parametrize("link", re.findall(r"`(tests/[^`]+)`", RUNBOOK))
def test_a_named_file_exists(link: str) -> None:
    assert (REPO / link).is_file()


@pytest.mark.parametrize("page", re.findall(r"\(#([a-z-]+)\)", RUNBOOK))
def test_a_linked_section_exists(page: str) -> None:
    assert page in {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", RUNBOOK, re.M)}
