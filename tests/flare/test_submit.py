"""Submitting a staged copy of a job, watching it, and its result."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfms.errors import ProvisioningError
from fedfms.flare import submit
from fedfms.flare.nvflare_cli import NvflareError
from fedfms.flare.progress import ENDED_FILE
from fedfms.flare.resume_job import read_job
from fedfms.flare.submit import JobResult, absent_sites, run_job, stage, watch_job
from fedfms.flare.watch import COMPLETED, JobWatcher, StillRunningError
from fedfms.reporting.records import read_records
from tests.reporting.make import make_row, make_run

from .fake_nvflare import ID, Fake, error, ok, state

REPO = Path(__file__).parents[2]
JOB = REPO / "jobs" / "fedmsa"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return Path(shutil.copytree(JOB, tmp_path / "job"))


def _has_results(fake: Fake, tmp_path: Path, reason: str = "", **run: Any) -> Path:
    """Give the server a run to download; returns the folder it will be in."""
    source, target = tmp_path / "server" / "server" / "simulate_job", tmp_path / "out" / ID / "workspace"
    make_run(tmp_path / "server", **run)
    if reason:
        (source / ENDED_FILE).write_text(f'{{"reason": "{reason}"}}')
    fake.answers("job download", {"copy": [str(source), str(target)]})
    return target


def test_the_copy_has_no_folder_that_nvflare_treats_as_code(job: Path, tmp_path: Path) -> None:
    (job / "app" / "config" / ".__nvfl_sig.json").write_text("{}")
    staged = stage(job, tmp_path / "staged")
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    assert names == {"meta.json", "app/config/config_fed_client.json", "app/config/config_fed_server.json"}
    assert not (staged / "app" / "custom").exists()
    for name in names:
        assert (staged / name).read_bytes() == (JOB / name).read_bytes()


def test_code_in_a_job_is_not_removed_silently(job: Path, tmp_path: Path) -> None:
    (job / "app" / "custom" / "mine.py").write_text("x = 1\n")
    assert (stage(job, tmp_path / "staged") / "app" / "custom" / "mine.py").is_file()


def test_what_sites_would_reject_is_not_submitted(job: Path, tmp_path: Path) -> None:
    (job / "app" / "more.bin").write_bytes(bytes(2_000_000))
    with pytest.raises(ProvisioningError, match="2.0 MB"):
        stage(job, tmp_path / "staged", max_mb=1)
    (job / "app" / "more.bin").unlink()
    (job / "app" / "custom" / "README.txt").unlink()
    os.mkfifo(job / "app" / "custom" / "pipe")
    with pytest.raises(ProvisioningError, match="cannot be copied"):
        stage(job, tmp_path / "other")
    with pytest.raises(ProvisioningError, match="not a job"):
        stage(tmp_path, tmp_path / "third")
    assert not [name for name in ("staged", "other", "third") if (tmp_path / name).exists()]


_FOLDERS = st.sampled_from(["", "app", "app/config", "app/custom", "app/custom/__pycache__", "more/__pycache__/deep"])
_NAMES = st.sampled_from([".__nvfl_sig.json", ".__nvfl_submitter.crt", "__pycache__", "a.pyc", "a.txt", "link", "b"])
_KINDS = st.sampled_from(["file", "link", "dangling", "folder link"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_FOLDERS, _NAMES, _KINDS), max_size=8))
def test_no_copy_holds_links_caches_or_signatures(things: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job = Path(shutil.copytree(JOB, Path(folder) / "job"))
        for where, name, kind in things:
            path = job / where / name
            if any(one.is_file() or one.is_symlink() for one in (path, *path.parents)) or path.is_dir():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.write_text("x")
            else:
                path.symlink_to({"link": JOB / "meta.json", "dangling": "nowhere", "folder link": JOB}[kind])
        staged = Path(folder) / "staged"
        try:
            stage(job, staged)
        except ProvisioningError as error:
            assert any(reason in error.line() for reason in ("links", "files that are not JSON"))
        found = list(staged.rglob("*"))
        assert staged.exists() == bool(found)
        for path in found:
            assert not path.is_symlink()
            assert path.name != "__pycache__" and not path.name.startswith(".__nvfl_") and path.suffix != ".pyc"


def test_a_job_is_submitted_watched_and_downloaded(fake: Fake, job: Path, tmp_path: Path) -> None:
    target, lines, ids = _has_results(fake, tmp_path), list[str](), list[str]()
    fake.answers("job monitor", [state("RUNNING"), state(COMPLETED)])
    result = run_job(job, fake.kit, tmp_path / "out", timeout_s=60, print_line=lines.append, on_submit=ids.append)
    assert ids == [ID] and result.completed() == result.run == target
    assert [line.split(":")[0] for line in lines if line.startswith("round")] == ["round 1/3", "round 2/3", "round 3/3"]
    (call,) = fake.calls("job submit")
    assert not Path(call.split()[3]).exists()  # the copy is deleted
    assert f"{target.parent.parent}" in fake.calls("job download")[0]


def test_absent_sites_are_listed_with_the_reason(fake: Fake, tmp_path: Path) -> None:
    folder = make_run(tmp_path, rows=[
        make_row(0, "a", None), make_row(0, "b", None, reason="[3, 4] holds NaN"), make_row(1, "a", None),
        make_row(0, "c", None, reason="held out"),
    ])  # fmt: skip
    records = read_records(folder)
    assert absent_sites({}, records) == {
        "b": "none of its updates was accepted ([3, 4] holds NaN)", "c": "left after round 1",
    }  # fmt: skip
    deployments = ["server: OK", "a: OK", "b: NVFLARE_ERROR: BYOC not permitted", "2 sites < 3"]
    fake.answers("job meta", ok(job_deploy_detail=deployments))
    rejections = JobWatcher(fake.kit, ID, print).rejections()
    assert absent_sites(rejections, records)["b"] == "rejected the job (BYOC not permitted)"
    never = read_records(make_run(tmp_path / "other", rows=[make_row(0, "a", None)]))
    assert absent_sites({}, never) == {"b": "never answered", "c": "never answered"}
    assert absent_sites(rejections, None) == {"b": "rejected the job (BYOC not permitted)"}
    all_of_them = [make_row(0, site, None, reason="held out" if site == "c" else "") for site in "abc"]
    assert absent_sites({}, read_records(make_run(tmp_path / "third", rows=all_of_them))) == {}


def test_the_result_of_a_job_that_everyone_rejected_has_the_reasons(fake: Fake, tmp_path: Path) -> None:
    fake.answers("job monitor", [state("FINISHED:FAILED_TO_RUN")])
    fake.answers("job meta", ok(job_deploy_detail=["server: the job holds 17.0 MB", "a: NVFLARE_ERROR: no scope"]))
    result = watch_job(ID, fake.kit, tmp_path, timeout_s=60)
    with pytest.raises(ProvisioningError, match=r"FAILED_TO_RUN \(the job holds 17.0 MB; a: rejected the job \(no sc"):
        result.completed()
    assert result.run is None and not result.process_died


def test_results_of_a_completed_job_that_cannot_be_downloaded_are_an_error(fake: Fake, tmp_path: Path) -> None:
    fake.answers("job monitor", [state(COMPLETED)])
    with pytest.raises(ProvisioningError, match="rejected.*--watch` downloads them again"):
        watch_job(ID, fake.kit, tmp_path, timeout_s=60)


@pytest.mark.slow
def test_only_a_job_whose_process_died_is_resumed(
    fake: Fake, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that a person stopped or the server ended early would end the same way again."""
    resumed: list[tuple[str, ...]] = []

    def submit_job(staged: Path, kit: Path, max_mb: float) -> str:
        resumed.append(read_job(staged)[1])
        return real(staged, kit, max_mb)

    real = submit.submit_job
    monkeypatch.setattr(submit, "submit_job", submit_job)
    died = [state("FINISHED:EXECUTION_EXCEPTION")]
    fake.answers("job monitor", died, died, [state("FINISHED:ABORTED")])
    lines, ids = list[str](), list[str]()
    result = run_job(
        job, fake.kit, tmp_path / "out", timeout_s=60, retries=5, print_line=lines.append, on_submit=ids.append
    )
    assert len(ids) == 3 and result.status == "FINISHED:ABORTED"
    assert resumed == [(), (ID,), (ID,)]  # the stand-in gives each job the same id
    assert [line for line in lines if "Connected sites: site-1" in line]
    fake.answers("job monitor", died)
    fake.answers("system status", error("CONNECTION_FAILED"))  # connected sites are then unknown
    assert run_job(job, fake.kit, tmp_path / "out", timeout_s=60, retries=1).process_died
    assert len(fake.calls("job submit")) == 5
    _has_results(fake, tmp_path, "round 1: 1 updates accepted, 2 needed", finished=False)
    result = run_job(job, fake.kit, tmp_path / "out", timeout_s=60, retries=1)
    assert len(fake.calls("job submit")) == 6
    with pytest.raises(ProvisioningError, match="1 updates accepted, 2 needed"):
        result.completed()


def test_a_watched_job_is_resumed_too(fake: Fake, job: Path, tmp_path: Path) -> None:
    """Without the job's folder: the run holds the study."""
    run = _has_results(fake, tmp_path, finished=False)
    Path(shutil.copytree(job / "app", tmp_path / "server" / "server" / "simulate_job" / "app_server"))
    fake.answers("job monitor", [state("FINISHED:EXECUTION_EXCEPTION")], [state("FINISHED:ABORTED")])
    ids = list[str]()
    result = run_job(None, fake.kit, tmp_path / "out", job_id=ID, timeout_s=60, retries=1, on_submit=ids.append)
    assert (ids, result.status) == ([ID], "FINISHED:ABORTED")
    assert read_job(run)[0] == read_job(job)[0]
    (call,) = fake.calls("job submit")
    assert Path(call.split()[3]).name == "fedmsa-1"
    fake.answers("job monitor", [state("FINISHED:EXECUTION_EXCEPTION")])
    assert run_job(None, fake.kit, tmp_path / "out", job_id=ID, timeout_s=60).process_died
    assert len(fake.calls("job submit")) == 1


@pytest.mark.slow
def test_a_job_that_died_before_it_started_is_submitted_again_unchanged(
    fake: Fake, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have saved nothing under its id, and would refuse to resume it."""
    _has_results(fake, tmp_path, finished=False)
    (tmp_path / "server" / "server" / "simulate_job" / "fedfms" / "run.json").unlink()
    fake.answers("job monitor", [state("FINISHED:EXECUTION_EXCEPTION")])
    resumed: list[tuple[str, ...]] = []
    real = submit.submit_job
    monkeypatch.setattr(
        submit, "submit_job", lambda staged, *rest: (resumed.append(read_job(staged)[1]), real(staged, *rest))[1]
    )
    assert run_job(job, fake.kit, tmp_path / "out", timeout_s=60, retries=2).process_died
    assert resumed == [(), (), ()]
    assert run_job(
        None, fake.kit, tmp_path / "out", job_id=ID, timeout_s=60, retries=2
    ).process_died  # nothing to submit
    assert len(resumed) == 3


def test_a_server_that_does_not_answer_in_time_may_have_accepted_the_job(fake: Fake, job: Path, tmp_path: Path) -> None:
    fake.answers("job submit", error("TIMEOUT", "no answer in 60 s"))
    with pytest.raises(ProvisioningError, match="no answer in 60 s; check whether the server has accepted it"):
        run_job(job, fake.kit, tmp_path / "out", timeout_s=60)


@pytest.mark.slow
def test_the_time_limit_covers_all_attempts_together(fake: Fake, job: Path, tmp_path: Path) -> None:
    fake.answers("job monitor", [state("FINISHED:EXECUTION_EXCEPTION")], [{"sleep": 600}])
    with pytest.raises(StillRunningError):
        run_job(job, fake.kit, tmp_path / "out", timeout_s=20, retries=100)
    assert len(fake.calls("job submit")) == 2
    assert not fake.calls("job abort")  # it still runs


def test_a_result_that_is_not_completed_has_no_folder() -> None:
    with pytest.raises(ProvisioningError, match="ended as ABORTED; look"):
        JobResult(ID, "FINISHED:ABORTED").completed()


def test_a_rejection_by_the_server_shows_its_message(fake: Fake, job: Path, tmp_path: Path) -> None:
    fake.answers("job submit", error("AUTH_FAILED", "not authorized to submit"))
    with pytest.raises(NvflareError, match="not authorized to submit"):
        run_job(job, fake.kit, tmp_path / "out", timeout_s=60)
    assert not fake.calls("job monitor")
