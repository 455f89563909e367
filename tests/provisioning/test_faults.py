"""Processes that die or stand still in the middle of a study, over mTLS: what is lost, and how it goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedfms.cli import main
from fedfms.errors import ProvisioningError
from fedfms.federation.inprocess import rounds
from fedfms.federation.state import FILE, ServerStateStore
from fedfms.flare.job import build_job
from fedfms.flare.nvflare_cli import ask
from fedfms.flare.resume import KEPT
from fedfms.flare.submit import stage
from fedfms.reporting import make_report
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, Study, load_study
from provisioning.federation import ADMIN, LEAD, Running, prepare
from tests.simulator.common import assert_equal

from .make import PASSPHRASE, REPO

pytestmark = [pytest.mark.federation, pytest.mark.processes, pytest.mark.slow]

LIMIT_S = 900
SITES = ("site-1", "site-2")
PHANTOM = STUDIES / "phantom.yaml"
SMALL = [
    "sites=[site-1, site-2]", "held_out=[]", "data.phantom_images=12", "train.rounds=4", "train.local_epochs=1",
    "model.input_px=64", "federation.min_cases=1", "federation.straggler_timeout_s=60", "federation.compression=int8",
    "federation.tracking=none",
]  # fmt: skip


def _study(*more: str) -> Study:
    return load_study(PHANTOM, method="fedsca", overrides=[*SMALL, *more])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "out"


@pytest.fixture(scope="module")
def running(out: Path) -> Iterator[Running]:
    job = build_job(_study(), out.parent / "fedsca")
    kits = prepare(out, SITES, [job], {ADMIN: "project_admin", LEAD: "lead"}, PASSPHRASE)
    with Running(kits, {"PYTHONPATH": f"{REPO / 'custom'}:{REPO}", "OMP_NUM_THREADS": "1"}) as started:
        started.start_all(SITES, ADMIN, LIMIT_S)
        yield started


def _send(running: Running, job: Path, work: Path) -> str:
    """Submit a job, and go on; its id."""
    return str(_ask(running, "submit", "-j", str(stage(job, work)))["job_id"])


def _ask(running: Running, *command: str) -> dict[str, Any]:
    """What the lead does with a job; where all run on few cores, NVFLARE's own command takes its time."""
    return ask(running.kits[LEAD], "job", *command, limit_s=LIMIT_S)


def _result(running: Running, id_: str, out: Path) -> Path:
    """Wait for a job's end; the server's folder of its run."""
    with suppress(ProvisioningError):  # it did not end well
        _ask(running, "wait", id_, "--timeout", str(LIMIT_S), "--interval", "1")
    _ask(running, "download", id_, "-o", str(out))
    return out / id_ / "workspace"


def _done(running: Running, id_: str) -> int:
    """Rounds that the server has kept of a job."""
    with suppress(FileNotFoundError):
        saved = ServerStateStore(running.kits["localhost"] / KEPT / id_ / FILE).load()
        return 0 if saved is None else saved.round
    return 0


def _signal(running: Running, name: str, number: signal.Signals) -> None:
    """To all processes of a server or site, its jobs' too."""
    for process in running._marked(name):
        with suppress(psutil.Error):
            process.send_signal(number)


def _kill(running: Running, name: str) -> None:
    _signal(running, name, signal.SIGKILL)
    running.end(name)


def _assert_resumed(running: Running, out: Path, id_: str, done: int, name: str) -> None:
    """A new job goes on after `done` rounds or one more, and ends with the numbers of a run that nobody cut."""
    assert main(["resume", str(out.parent / "fedsca"), "--job-id", id_, "--out", str(out.parent / name)]) == 0
    next_id = _send(running, out.parent / name, out / f"{name}-staged")
    run = _result(running, next_id, out / f"{name}-results")
    results = make_report(run).results
    assert results["resumed"] in ([done], [done + 1])
    assert results["valid"]
    assert results["rounds"] == {"planned": 4, "done": 4}
    assert all(entry["rounds"] == [0, 1, 2, 3] for entry in results["participation"].values())
    *_, last = rounds(_study(), SITES, SiteSettings(), out.parent / f"{name}-reference")
    server = ServerStateStore(run / "fedfms" / FILE).load()
    assert server is not None and server.round == 4
    assert_equal(server.shared, last.server.shared, 1e-6)
    for site in SITES:
        assert_equal(server.per_site[site], last.server.per_site[site], 1e-6)
    for job in (id_, next_id):
        assert not (running.kits["localhost"] / KEPT / job).exists(), "the study has come to its end"


def test_a_killed_server_is_gone_on_with_by_a_new_job_to_the_same_numbers(running: Running, out: Path) -> None:
    id_ = _send(running, out.parent / "fedsca", out / "server-staged")
    running.wait("round 1", lambda: _done(running, id_) >= 1, LIMIT_S)
    _kill(running, "localhost")
    done = _done(running, id_)
    running.start("localhost")
    running.wait("the sites", lambda: _registered(running, SITES), LIMIT_S)
    _assert_resumed(running, out, id_, done, "after-server")


def test_a_killed_site_ends_the_job_and_a_new_one_goes_on_when_it_is_back(running: Running, out: Path) -> None:
    id_ = _send(running, out.parent / "fedsca", out / "site-staged")
    running.wait("round 1", lambda: _done(running, id_) >= 1, LIMIT_S)
    _kill(running, "site-2")
    done = _done(running, id_)
    with suppress(ProvisioningError):  # NVFLARE itself ends the job, or does not see it: then the lead does
        _ask(running, "abort", id_)
    running.start("site-2")
    running.wait("the sites", lambda: _registered(running, SITES), LIMIT_S)
    _assert_resumed(running, out, id_, done, "after-site")


def test_a_site_that_stands_still_past_the_deadline_misses_the_round_and_is_back_in_a_later_one(
    running: Running, out: Path
) -> None:
    late = ["federation.min_sites=1", "federation.round_timeout_s=45", "federation.straggler_timeout_s=60"]
    job = build_job(_study(*late, "federation.required_sites=[site-2]"), out.parent / "late")
    id_ = _send(running, job, out / "late-staged")
    running.wait("round 1", lambda: _done(running, id_) >= 1, LIMIT_S)
    _signal(running, "site-2", signal.SIGSTOP)
    stopped = _done(running, id_)
    try:
        running.wait("the deadline", lambda: _done(running, id_) > stopped, LIMIT_S)
    finally:
        _signal(running, "site-2", signal.SIGCONT)
    report = make_report(_result(running, id_, out / "late-results"))
    missed = report.results["participation"]["site-2"]["missed"]
    assert missed.keys() >= {str(stopped)} and "did not answer" in missed[str(stopped)]
    assert "site-2 missed" in report.first_line.plain
    took_part = report.results["participation"]["site-2"]["rounds"]
    assert report.results["valid"] == (3 in took_part and len(took_part) >= 2)
    first = "valid: 1 of 2 sites" if report.results["valid"] else "NOT VALID: required"
    assert report.first_line.plain.startswith(first)


def test_below_its_quorum_a_round_fails_with_the_reason_and_the_study_is_not_valid(running: Running, out: Path) -> None:
    job = build_job(_study("federation.round_timeout_s=30"), out.parent / "quorum")
    id_ = _send(running, job, out / "quorum-staged")
    running.wait("round 1", lambda: _done(running, id_) >= 1, LIMIT_S)
    _signal(running, "site-2", signal.SIGSTOP)
    told = "1 updates accepted, 2 needed (the others did not answer)"
    try:
        running.wait("the reason", lambda: told in _logs(running), LIMIT_S)
    finally:
        _signal(running, "site-2", signal.SIGCONT)
    report = make_report(_result(running, id_, out / "quorum-results"))
    assert report.results["valid"] is False
    assert report.first_line.plain.startswith("NOT VALID: only ")


def _logs(running: Running) -> str:
    kit = running.kits["localhost"]
    return running.log("localhost") + "".join(path.read_text(errors="replace") for path in kit.rglob("*log.txt"))


def _registered(running: Running, sites: tuple[str, ...]) -> bool:
    with suppress(ProvisioningError, json.JSONDecodeError):  # the server is not up yet
        return set(sites) <= set(running.registered(ADMIN))
    return False
