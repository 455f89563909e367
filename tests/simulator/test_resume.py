"""A run in NVFLARE's simulator that is killed at a random moment is resumed with bit-equal numbers."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedfms.cli import main
from fedfms.errors import TrainingError
from fedfms.federation.inprocess import final_scores, rounds
from fedfms.federation.state import FILE, ServerStateStore
from fedfms.flare.job import build_job
from fedfms.flare.resume import CHECKPOINTS
from fedfms.flare.simulator import state_folder
from fedfms.flare.simulator_runs import resume_simulated
from fedfms.reporting import make_report
from fedfms.settings import SiteSettings
from fedfms.study import load_study
from fedfms.training.state import StateStore

from .common import PHANTOM, TINY, assert_equal, records

pytestmark = [pytest.mark.federation, pytest.mark.slow]

LIMIT_S = 300


def _done(workspace: Path) -> int:
    saved = ServerStateStore(workspace / "server" / CHECKPOINTS / "simulate_job" / FILE).load()
    return 0 if saved is None else saved.round


def _run_and_kill(job: Path, workspace: Path, after_s: float) -> int:
    """Run a job, and kill it some time after its first round; returns the number of finished rounds."""
    command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job), "-w", str(workspace)]
    process = subprocess.Popen([*command, "-t", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    try:
        until = time.monotonic() + LIMIT_S
        while not _done(workspace) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(TrainingError, match="is still running"):
            resume_simulated(workspace, 1)
        time.sleep(after_s)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return _done(workspace)


@pytest.mark.parametrize(("method", "compression"), [("fedsca", "int8"), ("fedala", "none")])
def test_a_killed_run_is_resumed_with_the_same_bits(method: str, compression: str, tmp_path: Path) -> None:
    overrides = [*TINY, "train.rounds=4", f"federation.compression={compression}"]
    study = load_study(PHANTOM, method=method, overrides=overrides)
    workspace = tmp_path / "ws"
    done = _run_and_kill(build_job(study, tmp_path / "job"), workspace, random.uniform(0, 6))
    assert done >= 1
    if done < 4:
        assert main(["report", str(workspace)]) == 1
    assert main(["resume", str(workspace), "--threads", "2"]) == 0
    assert not state_folder(workspace).exists()
    assert not (workspace / "server" / CHECKPOINTS / "simulate_job").exists()

    *_, last = rounds(study, study.sites, SiteSettings(), tmp_path / "reference")
    run = workspace / "server" / "simulate_job" / "fedfms"
    server = ServerStateStore(run / FILE).load()
    assert server is not None and server.round == 4
    assert_equal(server.shared, last.server.shared, 0)
    for site in study.sites:
        if server.per_site:
            assert_equal(server.per_site[site], last.server.per_site[site], 0)
        folders = (workspace / site / "simulate_job" / "fedfms", tmp_path / "reference" / site)
        one, other = (StateStore(folder / "state").load() for folder in folders)
        assert one is not None and other is not None
        for name in ("trained", "stored", "residual", "held"):
            assert_equal(getattr(one, name), getattr(other, name), 0)
    rows, final = records(workspace)
    assert [(row["round"], row["site"], row["accepted"]) for row in rows] == [
        (round_, site, True) for round_ in range(4) for site in study.sites
    ]
    reference = final_scores(study, study.sites, SiteSettings(), tmp_path / "reference", last.server)
    for site in study.sites:
        assert final["final"]["sites"][site]["scores"] == reference[site]["scores"]
    report = make_report(workspace)
    assert report.results["resumed"] == [done]
    assert report.first_line.plain.startswith("valid: 2 of 2 sites in 4 of 4 rounds; in all of them: a, b")
    assert main(["resume", str(workspace)]) == 1  # it is complete
