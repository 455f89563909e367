"""A study in the admin console, from login to shutdown, on data whose raw files contain a marker; then a search for the
marker in every byte at the server and its people. It shuts the shared federation down.
"""

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
from fedfms.provisioning.federation import ADMIN, LEAD, LocalFederation
from tests.preprocessing.make import CANARY
from tests.preprocessing.make import main as convert
from tests.preprocessing.volume_layouts import pair

from .make import MEMBER, SITES
from .processes import MARKED, TIMEOUT_S, logs
from .search import holders

pytestmark = [pytest.mark.federation, pytest.mark.processes, pytest.mark.slow]

MARKER = CANARY[:12]  # NIfTI's fields are short
PEOPLE = (ADMIN, LEAD, MEMBER)
PROMPT = "\r\n> "


class Console:
    """`fl_admin.sh` of a person's kit in a terminal."""

    def __init__(self, kit: Path, home: Path) -> None:
        home.mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._child = pexpect.spawn(
            "bash", [str(kit / "startup" / "fl_admin.sh")], encoding="utf-8", timeout=TIMEOUT_S, dimensions=(50, 250),
            env=os.environ | {"HOME": str(home), "PATH": path, "TERM": "dumb"},
        )  # fmt: skip
        self.seen = ""

    def expect(self, what: str) -> None:
        """Wait until it prints `what`."""
        self._child.expect_exact(what)
        self.seen += str(self._child.before) + what

    def type(self, line: str) -> None:
        """Type a line."""
        self._child.sendline(line)

    def ask(self, line: str) -> str:
        """Type a command; returns the output until the next prompt."""
        start = len(self.seen)
        self.type(line)
        self.expect(PROMPT)
        return self.seen[start:]

    def ended(self) -> str:
        """Wait until it ends; returns all output."""
        self._child.expect(pexpect.EOF)
        self.seen += str(self._child.before)
        self._child.close()
        return self.seen

    def close(self) -> None:
        """Kill it."""
        self._child.close(force=True)


@contextmanager
def _console(running: LocalFederation, person: str, home: Path) -> Iterator[Console]:
    """A console after login."""
    console = Console(running.kits[person], home)
    try:
        console.expect("User Name: ")
        console.type(person)
        console.expect(PROMPT)
        yield console
    finally:
        console.close()


@dataclass(frozen=True)
class Session:
    """The output of the consoles, the job's id, and the folder of its results."""

    seen: str
    job: str
    results: Path


def _give_data(running: LocalFederation, folder: Path) -> None:
    """Each site converts its own volumes; their names, headers and folders contain the marker."""
    for site in SITES:
        raw, data = folder / f"{CANARY}_raw_{site}", folder / f"{CANARY}_{site}"
        for number in range(6):
            pair(raw, f"{CANARY}{number}")
        rule = folder / "rule.yaml"
        rule.write_text("kind: volumes\nstructures: {structure: 1}\n")
        arguments = ["--dataset", MARKED, "--site", site, "--rule", str(rule), "--workers", "0"]
        assert convert(["pairs", "--raw", str(raw), "--out", str(data), *arguments]) == 0
        write_atomic(running.kits[site] / "local" / "fedfms_site.yaml", f"data_root: {data}\n", mode=0o600)
    for image in (data / MARKED / SITES[-1] / "images").iterdir():  # damaged at the last site
        image.write_bytes(image.read_bytes()[:-40])


@pytest.fixture(scope="module")
def session(running: LocalFederation, out: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """From login to shutdown. The lead runs the job but may not shut down; the project admin may."""
    folder = tmp_path_factory.mktemp("session")
    _give_data(running, folder)
    kit = running.kits[LEAD]
    stage(out.parent / MARKED, kit / "transfer" / MARKED)
    with _console(running, LEAD, folder / "home") as console:
        found = re.search(r"Submitted job: (\S+)", console.ask(f"submit_job {MARKED}"))
        assert found, console.seen
        job = found[1]
        running.wait("the job", lambda: "FINISHED:" in console.ask(f"list_jobs {job}"), TIMEOUT_S)
        console.ask("list_jobs")
        console.ask(f"download_job {job}")
        console.type("shutdown all")
        console.expect("Confirm with User Name: ")
        console.ask(LEAD)
        console.type("bye")
        seen = console.ended()
    with _console(running, ADMIN, folder / "home") as console:
        console.type("shutdown all")
        console.expect("Confirm with User Name: ")
        console.type(ADMIN)
        seen += console.ended()
    everybody = ("localhost", *SITES)
    running.wait("the end", lambda: not any(running.is_running(name) for name in everybody), TIMEOUT_S, everybody)
    return Session(seen, job, kit / "transfer" / job)


def test_the_console_submits_lists_downloads_and_shuts_down(session: Session, running: LocalFederation) -> None:
    assert re.search(rf"{session.job}\s*\|[^\n]*FINISHED:COMPLETED", session.seen), session.seen
    assert (session.results / "workspace" / "app_server" / "FL_global_model.pt").is_file()
    assert "not authorized" in session.seen.lower()  # the lead may not shut down
    assert not any(running.is_running(name) for name in ("localhost", *SITES))


def test_the_failed_site_is_rejected_with_a_reason_that_discloses_nothing(
    session: Session, running: LocalFederation
) -> None:
    lines = (session.results / "workspace" / "fedfms" / "rounds.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {(row["round"], row["site"]): row["accepted"] for row in rows} == {
        (round_, site): site != "site-3" for round_ in range(2) for site in SITES
    }
    reasons = [row["reason"] for row in rows if not row["accepted"]]
    assert ["unexpected RuntimeError" in reasons[0], "unexpected FileNotFoundError" in reasons[1]] == [True, True]
    assert CANARY in logs(running, "site-3")  # it stays at the site


def test_the_marker_is_nowhere_at_the_server_or_its_people(session: Session, running: LocalFederation) -> None:
    events = list(running.kits["localhost"].rglob("tb_events/**/events.*"))
    assert events or list(session.results.rglob("events.*"))
    for name in ("localhost", *PEOPLE):
        assert holders(running.kits[name], MARKER) == [], name
    assert MARKER not in session.seen


def test_the_search_would_have_found_the_marker(session: Session, running: LocalFederation) -> None:
    """At the failed site, and in the server's store if it is put there."""
    assert holders(running.kits["site-3"], MARKER)
    store = running.kits["localhost"] / "store"
    with zipfile.ZipFile(store / "planted", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", f"{MARKER}mann " * 40)
    try:
        assert holders(running.kits["localhost"], MARKER) == ["store/planted!a"]
    finally:
        (store / "planted").unlink()
