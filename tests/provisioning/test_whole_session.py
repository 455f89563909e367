"""A study from the admin console, from login to shutdown, on data whose raw files bear a marker; then, when all is
quiet, a search for the marker through every byte at the server and its people. It ends the shared federation.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from fedfms.files import write_atomic
from fedfms.flare.submit import stage
from preprocessing.cli import main as convert
from provisioning.federation import ADMIN, LEAD, Running
from tests.preprocessing.make import CANARY
from tests.preprocessing.volume_layouts import pair

from .make import MEMBER, SITES
from .processes import LIMIT_S, MARKED, logs
from .search import holders

pytestmark = [pytest.mark.federation, pytest.mark.processes, pytest.mark.slow]

MARKER = CANARY[:12]  # NIfTI's fields are short
PEOPLE = (ADMIN, LEAD, MEMBER)
PROMPT = "\r\n> "


class Console:
    """`fl_admin.sh` of a person's kit in a terminal, as they see it."""

    def __init__(self, kit: Path, home: Path) -> None:
        home.mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._child = pexpect.spawn(
            "bash", [str(kit / "startup" / "fl_admin.sh")], encoding="utf-8", timeout=LIMIT_S, dimensions=(50, 250),
            env=os.environ | {"HOME": str(home), "PATH": path, "TERM": "dumb"},
        )  # fmt: skip
        self.seen = ""

    def says(self, what: str) -> None:
        """Wait until it has printed that."""
        self._child.expect_exact(what)
        self.seen += str(self._child.before) + what

    def type(self, line: str) -> None:
        """A line, as a person types it."""
        self._child.sendline(line)

    def ask(self, line: str) -> str:
        """Type a command; what is printed until the next prompt."""
        start = len(self.seen)
        self.type(line)
        self.says(PROMPT)
        return self.seen[start:]

    def ended(self) -> str:
        """All that it has printed, once it has ended."""
        self._child.expect(pexpect.EOF)
        self.seen += str(self._child.before)
        self._child.close()
        return self.seen

    def close(self) -> None:
        """End it, whatever it does."""
        self._child.close(force=True)


@contextmanager
def _console(running: Running, person: str, home: Path) -> Iterator[Console]:
    """Logged in."""
    console = Console(running.kits[person], home)
    try:
        console.says("User Name: ")
        console.type(person)
        console.says(PROMPT)
        yield console
    finally:
        console.close()


@dataclass(frozen=True)
class Session:
    """What is left of it: what the terminals showed, the job's id, the folder of its results."""

    seen: str
    job: str
    results: Path


def _give_data(running: Running, folder: Path) -> None:
    """Every site converts volumes of its own, whose names and headers hold the marker, and so do their folders'."""
    for site in SITES:
        raw, data = folder / f"{CANARY}_raw_{site}", folder / f"{CANARY}_{site}"
        for number in range(6):
            pair(raw, f"{CANARY}{number}")
        rule = folder / "rule.yaml"
        rule.write_text("kind: volumes\nstructures: {structure: 1}\n")
        arguments = ["--dataset", MARKED, "--site", site, "--rule", str(rule), "--workers", "0"]
        assert convert(["pairs", "--raw", str(raw), "--out", str(data), *arguments]) == 0
        write_atomic(running.kits[site] / "local" / "fedfms_site.yaml", f"data_root: {data}\n", mode=0o600)
    for image in (data / MARKED / SITES[-1] / "images").iterdir():  # at the last site they are damaged as well
        image.write_bytes(image.read_bytes()[:-40])


@pytest.fixture(scope="module")
def session(running: Running, out: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """From login to shutdown. The lead runs the job, and may not shut down; the project's admin may."""
    folder = tmp_path_factory.mktemp("session")
    _give_data(running, folder)
    kit = running.kits[LEAD]
    stage(out.parent / MARKED, kit / "transfer" / MARKED)
    with _console(running, LEAD, folder / "home") as console:
        found = re.search(r"Submitted job: (\S+)", console.ask(f"submit_job {MARKED}"))
        assert found, console.seen
        job = found[1]
        running.wait("the job", lambda: "FINISHED:" in console.ask(f"list_jobs {job}"), LIMIT_S)
        console.ask("list_jobs")
        console.ask(f"download_job {job}")
        console.type("shutdown all")
        console.says("Confirm with User Name: ")
        console.ask(LEAD)
        console.type("bye")
        seen = console.ended()
    with _console(running, ADMIN, folder / "home") as console:
        console.type("shutdown all")
        console.says("Confirm with User Name: ")
        console.type(ADMIN)
        seen += console.ended()
    everybody = ("localhost", *SITES)
    running.wait("the end", lambda: not any(running.alive(name) for name in everybody), LIMIT_S, everybody)
    return Session(seen, job, kit / "transfer" / job)


def test_the_console_submits_lists_downloads_and_shuts_down(session: Session, running: Running) -> None:
    assert re.search(rf"{session.job}\s*\|[^\n]*FINISHED:COMPLETED", session.seen), session.seen
    assert (session.results / "workspace" / "app_server" / "FL_global_model.pt").is_file()
    assert "not authorized" in session.seen.lower()  # the lead, who shuts nothing down
    assert not any(running.alive(name) for name in ("localhost", *SITES))


def test_the_site_that_failed_is_left_out_with_a_reason_that_tells_nothing(session: Session, running: Running) -> None:
    lines = (session.results / "workspace" / "fedfms" / "rounds.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {(row["round"], row["site"]): row["accepted"] for row in rows} == {
        (round_, site): site != "site-3" for round_ in range(2) for site in SITES
    }
    reasons = [row["reason"] for row in rows if not row["accepted"]]
    assert ["unexpected RuntimeError" in reasons[0], "unexpected FileNotFoundError" in reasons[1]] == [True, True]
    assert CANARY in logs(running, "site-3")  # there it is, and stays


def test_the_marker_is_in_no_byte_at_the_server_or_its_people(session: Session, running: Running) -> None:
    events = list(running.kits["localhost"].rglob("tb_events/**/events.*"))
    assert events or list(session.results.rglob("events.*"))
    for name in ("localhost", *PEOPLE):
        assert holders(running.kits[name], MARKER) == [], name
    assert MARKER not in session.seen


def test_the_search_would_have_found_it(session: Session, running: Running) -> None:
    """In the raw data's headers, at the site that failed, and in what the server stores, were it there."""
    assert holders(running.kits["site-3"], MARKER)
    store = running.kits["localhost"] / "store"
    with zipfile.ZipFile(store / "planted", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", f"{MARKER}mann " * 40)
    try:
        assert holders(running.kits["localhost"], MARKER) == ["store/planted!a"]
    finally:
        (store / "planted").unlink()
