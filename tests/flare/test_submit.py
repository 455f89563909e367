"""What is submitted, a clean copy of the job that the simulator runs; and what comes of it."""

from __future__ import annotations

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
from fedfms.flare.nvflare_cli import ConsoleError
from fedfms.flare.progress import ENDED_FILE
from fedfms.flare.resume_job import described
from fedfms.flare.submit import Result, absent, run_job, stage, watch_job
from fedfms.flare.watch import COMPLETED, StillRunningError
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
    """The server has a run to be fetched; where its folder will be."""
    source, target = tmp_path / "server" / "server" / "simulate_job", tmp_path / "out" / ID / "workspace"
    make_run(tmp_path / "server", **run)
    if reason:
        (source / ENDED_FILE).write_text(f'{{"reason": "{reason}"}}')
    fake.answers("job download", {"copy": [str(source), str(target)]})
    return target


def test_the_copy_has_no_folder_that_nvflare_takes_for_code(job: Path, tmp_path: Path) -> None:
    (job / "app" / "config" / ".__nvfl_sig.json").write_text("{}")
    staged = stage(job, tmp_path / "staged")
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    assert names == {"meta.json", "app/config/config_fed_client.json", "app/config/config_fed_server.json"}
    assert not (staged / "app" / "custom").exists()
    for name in names:
        assert (staged / name).read_bytes() == (JOB / name).read_bytes()


def test_code_that_a_job_brings_is_not_taken_out_silently(job: Path, tmp_path: Path) -> None:
    (job / "app" / "custom" / "mine.py").write_text("x = 1\n")
    assert (stage(job, tmp_path / "staged") / "app" / "custom" / "mine.py").is_file()


def test_what_sites_would_refuse_is_not_sent(job: Path, tmp_path: Path) -> None:
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
def test_no_copy_ever_holds_links_caches_or_signatures(things: list[tuple[str, str, str]]) -> None:
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
        except ProvisioningError as refused:
            assert any(told in refused.line() for told in ("links", "not JSON alone"))
        found = list(staged.rglob("*"))
        assert staged.exists() == bool(found)
        for path in found:
            assert not path.is_symlink()
            assert path.name != "__pycache__" and not path.name.startswith(".__nvfl_") and path.suffix != ".pyc"


def test_a_job_is_sent_watched_and_fetched(fake: Fake, job: Path, tmp_path: Path) -> None:
    target, told, ids = _has_results(fake, tmp_path), list[str](), list[str]()
    fake.answers("job monitor", [state("RUNNING"), state(COMPLETED)])
    result = run_job(job, fake.kit, tmp_path / "out", limit_s=60, tell=told.append, submitted=ids.append)
    assert ids == [ID] and result.completed() == result.run == target
    assert [line.split(":")[0] for line in told if line.startswith("round")] == ["round 1/3", "round 2/3", "round 3/3"]
    (sent,) = fake.calls("job submit")
    assert not Path(sent.split()[3]).exists()  # the copy is gone
    assert f"{target.parent.parent}" in fake.calls("job download")[0]


def test_who_took_no_part_is_told_and_why(tmp_path: Path) -> None:
    folder = make_run(tmp_path, rows=[
        make_row(0, "a", None), make_row(0, "b", None, reason="[3, 4] holds NaN"), make_row(1, "a", None),
        make_row(0, "c", None, reason="held out"),
    ])  # fmt: skip
    records = read_records(folder)
    assert absent({}, records) == {
        "b": "none of its updates was accepted ([3, 4] holds NaN)", "c": "left after round 1",
    }  # fmt: skip
    meta = {"job_deploy_detail": ["server: OK", "a: OK", "b: NVFLARE_ERROR: BYOC not permitted", "2 sites < 3"]}
    assert absent(meta, records)["b"] == "refused the job (BYOC not permitted)"
    never = read_records(make_run(tmp_path / "other", rows=[make_row(0, "a", None)]))
    assert absent({}, never) == {"b": "never answered", "c": "never answered"}
    assert absent(meta, None) == {"b": "refused the job (BYOC not permitted)"}
    all_of_them = [make_row(0, site, None, reason="held out" if site == "c" else "") for site in "abc"]
    assert absent({}, read_records(make_run(tmp_path / "third", rows=all_of_them))) == {}


def test_a_job_that_nobody_took_says_so(fake: Fake, tmp_path: Path) -> None:
    fake.answers("job monitor", [state("FINISHED:FAILED_TO_RUN")])
    fake.answers("job meta", ok(job_deploy_detail=["server: the job holds 17.0 MB", "a: NVFLARE_ERROR: no scope"]))
    result = watch_job(ID, fake.kit, tmp_path, limit_s=60)
    with pytest.raises(ProvisioningError, match=r"FAILED_TO_RUN \(the job holds 17.0 MB; a: refused the job \(no sc"):
        result.completed()
    assert result.run is None and not result.died


def test_results_that_cannot_be_fetched_are_a_fault_where_there_must_be_some(fake: Fake, tmp_path: Path) -> None:
    fake.answers("job monitor", [state(COMPLETED)])
    with pytest.raises(ProvisioningError, match="not so.*--watch` fetches them again"):
        watch_job(ID, fake.kit, tmp_path, limit_s=60)


def test_a_job_whose_process_died_goes_on_by_a_new_one_and_no_other(
    fake: Fake, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person stopped, or what the server itself gave up, would end the same way."""
    named: list[tuple[str, ...]] = []

    def send(sent: Path, kit: Path, max_mb: float) -> str:
        named.append(described(sent)[1])
        return real(sent, kit, max_mb)

    real = submit.send
    monkeypatch.setattr(submit, "send", send)
    died = [state("FINISHED:EXECUTION_EXCEPTION")]
    fake.answers("job monitor", died, died, [state("FINISHED:ABORTED")])
    told, ids = list[str](), list[str]()
    result = run_job(job, fake.kit, tmp_path / "out", limit_s=60, retries=5, tell=told.append, submitted=ids.append)
    assert len(ids) == 3 and result.status == "FINISHED:ABORTED"
    assert named == [(), (ID,), (ID,)]  # the stand-in gives each the same id
    assert [line for line in told if "Sites that are there: site-1" in line]
    fake.answers("job monitor", died)
    fake.answers("system status", error("CONNECTION_FAILED"))  # who is there is told where it is known
    assert run_job(job, fake.kit, tmp_path / "out", limit_s=60, retries=1).died
    assert len(fake.calls("job submit")) == 5
    _has_results(fake, tmp_path, "round 1: 1 updates accepted, 2 needed", finished=False)
    result = run_job(job, fake.kit, tmp_path / "out", limit_s=60, retries=1)
    assert len(fake.calls("job submit")) == 6
    with pytest.raises(ProvisioningError, match="1 updates accepted, 2 needed"):
        result.completed()


def test_a_job_that_is_watched_goes_on_by_a_new_one_too(fake: Fake, job: Path, tmp_path: Path) -> None:
    """Its folder may be gone: the run holds the study."""
    run = _has_results(fake, tmp_path, finished=False)
    Path(shutil.copytree(job / "app", tmp_path / "server" / "server" / "simulate_job" / "app_server"))
    fake.answers("job monitor", [state("FINISHED:EXECUTION_EXCEPTION")], [state("FINISHED:ABORTED")])
    ids = list[str]()
    result = run_job(None, fake.kit, tmp_path / "out", watched=ID, limit_s=60, retries=1, submitted=ids.append)
    assert (ids, result.status) == ([ID], "FINISHED:ABORTED")
    assert described(run)[0] == described(job)[0]
    (sent,) = fake.calls("job submit")
    assert Path(sent.split()[3]).name == "fedmsa-1"
    fake.answers("job monitor", [state("FINISHED:EXECUTION_EXCEPTION")])
    assert run_job(None, fake.kit, tmp_path / "out", watched=ID, limit_s=60).died
    assert len(fake.calls("job submit")) == 1


def test_a_job_that_died_before_it_began_is_sent_again_as_it_is(
    fake: Fake, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have kept nothing under its id, and would refuse to go on from it."""
    _has_results(fake, tmp_path, finished=False)
    (tmp_path / "server" / "server" / "simulate_job" / "fedfms" / "run.json").unlink()
    fake.answers("job monitor", [state("FINISHED:EXECUTION_EXCEPTION")])
    named: list[tuple[str, ...]] = []
    real = submit.send
    monkeypatch.setattr(submit, "send", lambda sent, *rest: (named.append(described(sent)[1]), real(sent, *rest))[1])
    assert run_job(job, fake.kit, tmp_path / "out", limit_s=60, retries=2).died
    assert named == [(), (), ()]
    assert run_job(None, fake.kit, tmp_path / "out", watched=ID, limit_s=60, retries=2).died  # nothing to send
    assert len(named) == 3


def test_a_server_that_does_not_answer_in_time_may_have_taken_it(fake: Fake, job: Path, tmp_path: Path) -> None:
    fake.answers("job submit", error("TIMEOUT", "no answer in 60 s"))
    with pytest.raises(ProvisioningError, match="no answer in 60 s; look whether the server has taken it all the same"):
        run_job(job, fake.kit, tmp_path / "out", limit_s=60)


@pytest.mark.slow
def test_the_limit_is_of_all_tries_together(fake: Fake, job: Path, tmp_path: Path) -> None:
    fake.answers("job monitor", [state("FINISHED:EXECUTION_EXCEPTION")], [{"sleep": 600}])
    with pytest.raises(StillRunningError):
        run_job(job, fake.kit, tmp_path / "out", limit_s=20, retries=100)
    assert len(fake.calls("job submit")) == 2
    assert not fake.calls("job abort")  # it goes on


def test_a_result_that_is_not_completed_names_no_folder() -> None:
    with pytest.raises(ProvisioningError, match="ended as ABORTED; look"):
        Result(ID, "FINISHED:ABORTED").completed()


def test_what_the_server_refuses_is_told_in_its_words(fake: Fake, job: Path, tmp_path: Path) -> None:
    fake.answers("job submit", error("AUTH_FAILED", "not authorized to submit"))
    with pytest.raises(ConsoleError, match="not authorized to submit"):
        run_job(job, fake.kit, tmp_path / "out", limit_s=60)
    assert not fake.calls("job monitor")
