"""The runbook's commands are ones that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from preprocessing.cli import make_parser
from provisioning import cli

REPO = Path(__file__).parents[2]
RUNBOOK = (REPO / "provisioning" / "RUNBOOK.md").read_text()
PARSERS = {"provisioning": cli._parser, "preprocessing": make_parser}
COMMAND = re.compile(r"(?:^|`)python -m (provisioning|preprocessing) ([^`#\n>]+)", re.M)
COMMANDS = sorted({(found[1], found[2].strip()) for found in COMMAND.finditer(RUNBOOK)})


def test_there_are_commands() -> None:
    assert {command.split()[0] for program, command in COMMANDS if program == "provisioning"} >= {
        "open", "verify", "request", "package", "allow",
        "template", "make", "add", "approve", "replace", "expiry", "renew", "block",
    }  # fmt: skip


@pytest.mark.parametrize(("program", "command"), [one for one in COMMANDS if one[1] != "--help"])
def test_a_command_is_one(program: str, command: str) -> None:
    PARSERS[program]().parse_args(shlex.split(command))


@pytest.mark.parametrize("link", re.findall(r"`(tests/[^`]+)`", RUNBOOK))
def test_what_it_names_is_there(link: str) -> None:
    assert (REPO / link).is_file()


@pytest.mark.parametrize("page", re.findall(r"\(#([a-z-]+)\)", RUNBOOK))
def test_a_page_that_it_leads_to_is_there(page: str) -> None:
    assert page in {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", RUNBOOK, re.M)}
