"""Shared federations: kits for tests that only read them, and running processes for tests that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedfms.provisioning.deployment import create_federation

from .make import MEMBER, PASSPHRASE, REPO, SITES, project_file, umask

if TYPE_CHECKING:
    from fedfms.provisioning.federation import LocalFederation


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation whose sites may send what `jobs/fedmsa` shares, made with umask 0."""
    folder = tmp_path_factory.mktemp("federation")
    with umask(0):
        project = project_file(folder / "project.yml", jobs=[str(REPO / "jobs" / "fedmsa")])
        create_federation(project, folder / "fed", PASSPHRASE)
    return folder / "fed"


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the running federation; its parent holds the jobs."""
    return tmp_path_factory.mktemp("running") / "out"


@pytest.fixture(scope="session")
def running(out: Path) -> Iterator[LocalFederation]:
    """A server and three sites. Site 1 records what leaves it, site 3 raises errors on the marked data. The server, but
    no site, lets the lead bring code."""
    from fedfms.flare.job import build_job  # imports torch, which tests without processes do not need
    from fedfms.provisioning.federation import ADMIN, LEAD, LocalFederation, prepare_kits

    from .processes import TIMEOUT_S, edit_json, marked_study, small_study

    jobs = [build_job(small_study(), out.parent / "fedmsa"), build_job(marked_study(), out.parent / "marked")]
    kits = prepare_kits(out, SITES, jobs, {ADMIN: "project_admin", LEAD: "lead", MEMBER: "member"}, PASSPHRASE)
    for site, path in (("site-1", "tests.simulator.spy.Spy"), ("site-3", "tests.provisioning.raising.Raises")):
        more = {"path": path, "args": {}}
        edit_json(kits[site] / "local" / "privacy.json", lambda policy, more=more: (
            policy["scopes"][0]["task_result_filters"].append(more)
        ))  # fmt: skip
    edit_json(kits["localhost"] / "local" / "authorization.json", lambda policy: (
        policy["permissions"]["lead"].update(byoc="any")
    ))  # fmt: skip
    with LocalFederation(kits, {"PYTHONPATH": f"{REPO / 'custom'}:{REPO}", "OMP_NUM_THREADS": "1"}) as started:
        started.start_all(SITES, ADMIN, TIMEOUT_S)
        yield started
