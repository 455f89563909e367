"""Federations that are made once: kits for tests that only read them, and processes for those that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from provisioning.deployment import make

from .make import MEMBER, PASSPHRASE, REPO, SITES, project_file, umask

if TYPE_CHECKING:
    from provisioning.federation import Running


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation whose sites may send what `jobs/fedmsa` shares; made under a umask that takes nobody's rights."""
    folder = tmp_path_factory.mktemp("federation")
    with umask(0):
        make(project_file(folder / "project.yml", jobs=[str(REPO / "jobs" / "fedmsa")]), folder / "fed", PASSPHRASE)
    return folder / "fed"


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the running federation is; the jobs lie beside it."""
    return tmp_path_factory.mktemp("running") / "out"


@pytest.fixture(scope="session")
def running(out: Path) -> Iterator[Running]:
    """All are up. Site 1 writes down what leaves it, site 3 meets errors on the marked data; the server itself lets
    the lead bring code, and no site does."""
    from fedfms.flare.job import build_job  # torch: not for the tests that need no process
    from provisioning.federation import ADMIN, LEAD, Running, prepare

    from .processes import LIMIT_S, edit_json, marked_study, small_study

    jobs = [build_job(small_study(), out.parent / "fedmsa"), build_job(marked_study(), out.parent / "marked")]
    kits = prepare(out, SITES, jobs, {ADMIN: "project_admin", LEAD: "lead", MEMBER: "member"}, PASSPHRASE)
    for site, path in (("site-1", "tests.simulator.spy.Spy"), ("site-3", "tests.provisioning.raising.Raises")):
        more = {"path": path, "args": {}}
        edit_json(kits[site] / "local" / "privacy.json", lambda policy, more=more: (
            policy["scopes"][0]["task_result_filters"].append(more)
        ))  # fmt: skip
    edit_json(kits["localhost"] / "local" / "authorization.json", lambda policy: (
        policy["permissions"]["lead"].update(byoc="any")
    ))  # fmt: skip
    with Running(kits, {"PYTHONPATH": f"{REPO / 'custom'}:{REPO}", "OMP_NUM_THREADS": "1"}) as started:
        started.start_all(SITES, ADMIN, LIMIT_S)
        yield started
