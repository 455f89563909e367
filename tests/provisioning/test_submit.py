"""What is submitted: a clean copy of the job that the simulator runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from provisioning.submit import stage

from fedfms.errors import ProvisioningError

from .make import REPO

JOB = REPO / "jobs" / "fedmsa"


def test_the_copy_has_no_folder_that_nvflare_takes_for_code(tmp_path: Path) -> None:
    job = Path(shutil.copytree(JOB, tmp_path / "job"))
    (job / "app" / "config" / ".__nvfl_sig.json").write_text("{}")
    staged = stage(job, tmp_path / "staged")
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    assert names == {"meta.json", "app/config/config_fed_client.json", "app/config/config_fed_server.json"}
    assert not (staged / "app" / "custom").exists()
    for name in names:
        assert (staged / name).read_bytes() == (JOB / name).read_bytes()


def test_code_that_a_job_brings_is_not_taken_out_silently(tmp_path: Path) -> None:
    job = Path(shutil.copytree(JOB, tmp_path / "job"))
    (job / "app" / "custom" / "mine.py").write_text("x = 1\n")
    assert (stage(job, tmp_path / "staged") / "app" / "custom" / "mine.py").is_file()


def test_what_sites_would_refuse_is_not_sent(tmp_path: Path) -> None:
    job = Path(shutil.copytree(JOB, tmp_path / "job"))
    (job / "app" / "more.bin").write_bytes(bytes(2_000_000))
    with pytest.raises(ProvisioningError, match="2.0 MB"):
        stage(job, tmp_path / "staged", max_mb=1)
    (job / "app" / "more.bin").unlink()
    (job / "app" / "link").symlink_to("/etc/hostname")
    with pytest.raises(ProvisioningError, match="links"):
        stage(job, tmp_path / "other")
    with pytest.raises(ProvisioningError, match="not a job"):
        stage(tmp_path, tmp_path / "third")
