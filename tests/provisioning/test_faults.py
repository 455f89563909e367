"""Processes that die or hang in the middle of a study, with mutual TLS: what is lost, and how the run resumes."""

import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fedfms.cli import main
from fedfms.errors import ProvisioningError
from fedfms.federation.inprocess import rounds
from fedfms.federation.state import FILE, ServerStateStore
from fedfms.flare.job import build_job
from fedfms.flare.nvflare_cli import Reply, run_with_kit
from fedfms.flare.resume import CHECKPOINTS
from fedfms.flare.submit import registered_sites, stage
from fedfms.provisioning.federation import ADMIN, LEAD, LocalFederation, prepare_kits
from fedfms.reporting import make_report
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, Study, load_study
from tests.simulator.common import assert_equal

from .make import PASSPHRASE, REPO

pytestmark = [pytest.mark.federation, pytest.mark.processes, pytest.mark.slow]

TIMEOUT_S = 900
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
def running(out: Path) -> Iterator[LocalFederation]:
    job = build_job(_study(), out.parent / "fedsca")
    kits = prepare_kits(out, SITES, [job], {ADMIN: "project_admin", LEAD: "lead"}, PASSPHRASE)
    with LocalFederation(kits, {"PYTHONPATH": f"{REPO / 'custom'}:{REPO}", "OMP_NUM_THREADS": "1"}) as started:
        started.start_all(SITES, ADMIN, TIMEOUT_S)
        yield started


def _send(running: LocalFederation, job: Path, work: Path) -> str:
    """Submit a job without waiting for it; returns its id."""
    return _job(running, "submit", "-j", str(stage(job, work))).job_id


def _job(running: LocalFederation, *command: str) -> Reply:
    """Run an `nvflare job` command as the lead; it is slow when all processes share few cores."""
    return run_with_kit(running.kits[LEAD], "job", *command, timeout_s=TIMEOUT_S)


def _result(running: LocalFederation, id_: str, out: Path) -> Path:
    """Wait for a job's end; returns the server's folder of its run."""
    with suppress(ProvisioningError):  # it did not complete
        _job(running, "wait", id_, "--timeout", str(TIMEOUT_S), "--interval", "1")
    _job(running, "download", id_, "-o", str(out))
    return out / id_ / "workspace"


def _done(running: LocalFederation, id_: str) -> int:
    """Rounds of a job that the server has saved."""
    with suppress(FileNotFoundError):
        saved = ServerStateStore(running.kits["localhost"] / CHECKPOINTS / id_ / FILE).load()
        return 0 if saved is None else saved.round
    return 0


def _signal(running: LocalFederation, name: str, number: signal.Signals) -> None:
    """Send a signal to all processes of a server or site, including its jobs."""
    for process in running.marked(name):
        with suppress(psutil.Error):
            process.send_signal(number)


def _kill(running: LocalFederation, name: str) -> None:
    _signal(running, name, signal.SIGKILL)
    running.stop(name)


def _assert_resumed(running: LocalFederation, out: Path, id_: str, done: int, name: str) -> None:
    """A new job resumes after `done` rounds or one more, and ends with the numbers of an uninterrupted run."""
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
        assert not (running.kits["localhost"] / CHECKPOINTS / job).exists(), "removed when the study is complete"


def test_a_new_job_resumes_after_a_killed_server_with_the_same_numbers(running: LocalFederation, out: Path) -> None:
    id_ = _send(running, out.parent / "fedsca", out / "server-staged")
    running.wait("round 1", lambda: _done(running, id_) >= 1, TIMEOUT_S)
    _kill(running, "localhost")
    done = _done(running, id_)
    running.start("localhost")
    running.wait("the sites", lambda: _registered(running, SITES), TIMEOUT_S)
    _assert_resumed(running, out, id_, done, "after-server")


def test_a_killed_site_ends_the_job_and_a_new_job_resumes_it(running: LocalFederation, out: Path) -> None:
    id_ = _send(running, out.parent / "fedsca", out / "site-staged")
    running.wait("round 1", lambda: _done(running, id_) >= 1, TIMEOUT_S)
    _kill(running, "site-2")
    done = _done(running, id_)
    with suppress(ProvisioningError):  # NVFLARE ends the job, or does not notice: then the lead aborts it
        _job(running, "abort", id_)
    running.start("site-2")
    running.wait("the sites", lambda: _registered(running, SITES), TIMEOUT_S)
    _assert_resumed(running, out, id_, done, "after-site")


def test_a_site_that_hangs_past_the_round_timeout_misses_the_round_and_joins_a_later_one(
    running: LocalFederation, out: Path
) -> None:
    late = ["federation.min_sites=1", "federation.round_timeout_s=45", "federation.straggler_timeout_s=60"]
    job = build_job(_study(*late, "federation.required_sites=[site-2]"), out.parent / "late")
    id_ = _send(running, job, out / "late-staged")
    running.wait("round 1", lambda: _done(running, id_) >= 1, TIMEOUT_S)
    _signal(running, "site-2", signal.SIGSTOP)
    stopped = _done(running, id_)
    try:
        running.wait("the deadline", lambda: _done(running, id_) > stopped, TIMEOUT_S)
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


def test_a_round_with_too_few_updates_fails_with_the_reason_and_the_run_is_not_valid(
    running: LocalFederation, out: Path
) -> None:
    job = build_job(_study("federation.round_timeout_s=30"), out.parent / "quorum")
    id_ = _send(running, job, out / "quorum-staged")
    running.wait("round 1", lambda: _done(running, id_) >= 1, TIMEOUT_S)
    _signal(running, "site-2", signal.SIGSTOP)
    message = "1 updates accepted, 2 needed (the others did not answer)"
    try:
        running.wait("the reason", lambda: message in _logs(running), TIMEOUT_S)
    finally:
        _signal(running, "site-2", signal.SIGCONT)
    report = make_report(_result(running, id_, out / "quorum-results"))
    assert report.results["valid"] is False
    assert report.first_line.plain.startswith("NOT VALID: only ")


def _logs(running: LocalFederation) -> str:
    kit = running.kits["localhost"]
    return running.log("localhost") + "".join(path.read_text(errors="replace") for path in kit.rglob("*log.txt"))


def _registered(running: LocalFederation, sites: tuple[str, ...]) -> bool:
    with suppress(ProvisioningError, json.JSONDecodeError):  # the server has not started yet
        return set(sites) <= set(registered_sites(running.kits[ADMIN]))
    return False
