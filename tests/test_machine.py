"""Free memory, also in a container; threads; and the number of a simulator's sites that fit at once."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fedfms import machine
from fedfms.flare import simulator_runs
from fedfms.settings import SiteSettings
from fedfms.study import Study

GIB = 2**30


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the container's limits, on a machine with 10 GiB free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * GIB))
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    return tmp_path


def _limit(folder: Path, limit: str, current: int) -> None:
    for name, text in (("max", limit), ("current", str(current)), ("stat", f"anon 5\ninactive_file {GIB}\n")):
        (folder / f"memory.{name}").write_text(text)


@pytest.mark.parametrize(
    ("limit", "current", "left"),
    [("max", 3 * GIB, 10), (str(8 * GIB), 3 * GIB, 6), (str(64 * GIB), 3 * GIB, 10), (str(GIB), 3 * GIB, 0)],
)
def test_free_memory_is_limited_by_the_container(limit: str, current: int, left: int, free: Path) -> None:
    assert machine.free_memory() == 10 * GIB
    _limit(free, limit, current)
    assert machine.free_memory() == left * GIB


@pytest.mark.parametrize(
    ("sites", "threads", "left", "at_once"),
    [
        (7, 4, 10, 7),  # all four cores for this run: seven sites of 0.6 GiB fit in half of 10 GiB
        (7, 1, 10, 4),  # one of four parallel runs: they do not fit in an eighth of 10 GiB
        (7, 4, 2, 4),
        (7, 64, 5, 4),  # more threads than cores do not increase the share of memory
        (3, 1, 0, 3),  # not more sites than cores
        (7, 0, 10, 7),  # NVFLARE's processes share the threads
    ],
)
def test_sites_run_all_at_once_or_one_per_core(
    sites: int, threads: int, left: int, at_once: int, free: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit(free, str(left * GIB), GIB)
    monkeypatch.setattr(simulator_runs, "usable_cores", lambda: 4)
    monkeypatch.setattr(simulator_runs, "estimate", lambda *_: GIB // 10)
    assert simulator_runs.sites_at_once(Study(name="s"), SiteSettings(device="cpu", threads=threads), sites) == at_once


def test_threads_are_the_requested_ones_the_environments_or_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    monkeypatch.delenv(machine.THREADS, raising=False)
    assert [machine.threads_for(0, at_once) for at_once in (1, 3, 20)] == [8, 2, 1]
    monkeypatch.setenv(machine.THREADS, "4,2")
    assert machine.threads_for(0, 3) == 4
    assert machine.threads_for(1, 3) == 1
    monkeypatch.setenv(machine.THREADS, "many")
    assert machine.threads_for(0, 2) == 4
