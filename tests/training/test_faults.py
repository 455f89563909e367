"""Faults at a site: killed during a write, a truncated file, a full disk; what is lost and what is not."""

import itertools
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.errors import TrainingError, UpdateError
from fedfms.federation.memory_mapped import memory_mapped
from fedfms.federation.state import ServerStateStore
from fedfms.methods import ServerState
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.prefix import PrefixCache
from fedfms.training.site import Site
from fedfms.training.state import SiteState, StateStore
from tests.disk import NO_ROOM, SmallDisk
from tests.methods.common import SITES, run, same, study


class _Killed(BaseException):
    """Stands for SIGKILL."""


def _killed_at(number: int, renamed: bool, patch: pytest.MonkeyPatch) -> None:
    """Simulate SIGKILL at the write of this number, before or after the rename, and leave half a temporary file."""
    real, writes = os.replace, itertools.count()

    def replace(source: Any, target: Any) -> None:
        if next(writes) == number:
            content = Path(source).read_bytes()
            Path(f"{source}"[: -len(".tmp")] + "x.tmp").write_bytes(content[: len(content) // 2])
            if renamed:
                real(source, target)
            raise _Killed
        real(source, target)

    patch.setattr(os, "replace", replace)


@pytest.mark.slow
def test_a_kill_at_any_write_of_a_round_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each site's and the server's state, before and after the rename, a resumed run gives the same bits."""
    of, first = study("fedmsa", "model.input_px=32", "data.phantom_px=32"), tmp_path / "first"
    run(of, first, stop_after=1)
    shutil.copytree(first, tmp_path / "whole")
    whole = run(of, tmp_path / "whole")[-1]
    for number, renamed in itertools.product(range(len(SITES) + 1), (False, True)):
        folder = tmp_path / f"{number} {renamed}"
        shutil.copytree(first, folder)
        with monkeypatch.context() as patch, pytest.raises(_Killed):
            _killed_at(number, renamed, patch)
            run(of, folder)
        run(of, folder)
        server = ServerStateStore(folder / "server.pt").load()
        assert server is not None
        assert same(server.shared, whole.server.shared)
        for site in SITES:
            one, other = (StateStore(place / site / "state").load() for place in (folder, tmp_path / "whole"))
            assert one is not None
            assert other is not None
            assert (one.round, same(one.trained, other.trained)) == (other.round, True)


def test_a_truncated_state_is_an_error(tmp_path: Path) -> None:
    """The site's and the server's; the file of the round before is intact."""
    states, server = StateStore(tmp_path / "state"), ServerStateStore(tmp_path / "server.pt")
    for round_ in range(2):
        states.save(SiteState(round_, {"w": torch.full((3,), float(round_))}, {"state": {}}))
    server.save(ServerState({"w": torch.ones(3)}, 2))
    for path, load in ((tmp_path / "state" / "round_00001.pt", states.load), (tmp_path / "server.pt", server.load)):
        content = path.read_bytes()
        for length in (*range(0, len(content), 13), *range(len(content) - 30, len(content))):
            path.write_bytes(content[:length])
            with pytest.raises(TrainingError, match="cannot be read; remove the run's folder"):
                load()
    before = states.load(before=1)
    assert before is not None
    assert before.trained["w"].tolist() == [0, 0, 0]


def test_the_next_write_removes_temporary_files_of_a_killed_process(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    (tmp_path / ".round_00000.pt.abc.tmp").write_bytes(b"half")
    assert store.load() is None
    store.save(SiteState(0, {"w": torch.zeros(1)}, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["round_00000.pt"]


@pytest.fixture(scope="module")
def tiny_vit() -> Study:
    model = {"backbone": "tiny_vit", "input_px": 32}
    train = {"batch_size": 2, "rounds": 1}
    return Study.from_dict({"name": "t", "data": {"phantom_images": 4}, "model": model, "train": train})


def test_a_truncated_cached_feature_is_recomputed(tiny_vit: Study, tmp_path: Path) -> None:
    cache = PrefixCache(build(tiny_vit, SiteSettings()), tmp_path)
    image, key = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "a" * 64
    whole = cache.features(image, [key])
    (path,) = tmp_path.rglob("*.npy")
    content = path.read_bytes()
    for length in (0, 1, 5, 60, 127, 128, 129, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        torch.testing.assert_close(cache.features(image, [key]), whole, rtol=0, atol=0)
        assert path.read_bytes() == content


@pytest.mark.slow
def test_a_full_disk_under_the_prefix_cache_costs_only_time(
    tiny_vit: Study, disk: SmallDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    updates = []
    for full in (True, False):
        site = Site(tiny_vit, "a", SiteSettings(cache=disk.folder if full else None), tmp_path / str(full))
        received = site.built.shared()
        if full:
            disk.fill()
            # The file size limit that simulates a full disk would apply to the site's state, too.
            site._store.save = lambda state: None  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING):
            updates.append(site.train_round(0, received).update.tensors)
        disk.free()
    messages = [record.getMessage() for record in caplog.records if "cache" in record.getMessage()]
    assert len(messages) == 1
    assert str(disk.folder) not in messages[0]
    assert same(*updates)


@pytest.mark.slow
def test_a_full_disk_under_a_sites_state_is_reported_and_loses_nothing(disk: SmallDisk, tmp_path: Path) -> None:
    of = study("fedmsa")
    site, other = (Site(of, "a", SiteSettings(), place / "run") for place in (disk.folder, tmp_path))
    received = site.built.shared()
    second = [each.train_round(0, received).update.tensors for each in (site, other)][0]
    disk.fill()
    what = f"^site a, round 1: the state after round 1 cannot be written {NO_ROOM}; make room in the run folder"
    with pytest.raises(TrainingError, match=what) as caught:
        site.train_round(1, second)
    assert str(disk.folder) not in caught.value.line()
    disk.free()
    assert [path.name for path in (disk.folder / "run" / "state").iterdir()] == ["round_00000.pt"]
    again = site.train_round(1, second).update.tensors
    assert same(again, other.train_round(1, second).update.tensors)


def test_a_full_disk_under_a_sites_outputs_is_reported(disk: SmallDisk) -> None:
    site = Site(study("fedmsa"), "a", SiteSettings(), disk.folder / "run")
    shared = site.built.shared()
    site.evaluate(shared, overlays="best")
    disk.fill()
    with pytest.raises(TrainingError, match=f"^site a: the site's files of the run cannot be written {NO_ROOM}"):
        site.evaluate(shared, overlays="final")


def test_a_full_disk_under_the_servers_state_is_reported_and_loses_nothing(disk: SmallDisk) -> None:
    store = ServerStateStore(disk.folder / "server.pt")
    store.save(ServerState({"w": torch.zeros(10_000)}, 1))
    disk.fill()
    with pytest.raises(TrainingError, match=f"^the server's state cannot be written {NO_ROOM}; make room") as caught:
        store.save(ServerState({"w": torch.ones(10_000)}, 2))
    assert str(disk.folder) not in caught.value.line()
    disk.free()
    before = store.load()
    assert before is not None
    assert (before.round, float(before.shared["w"].sum())) == (1, 0.0)
    assert [path.name for path in disk.folder.iterdir()] == ["server.pt"]


def test_a_full_disk_under_memory_mapped_updates_is_reported_and_leaves_no_file(disk: SmallDisk) -> None:
    tensors = [("w", torch.ones(10_000).numpy())]
    stored = memory_mapped(tensors, disk.folder / "spool")
    disk.fill()
    with pytest.raises(UpdateError, match=f"the server cannot store it {NO_ROOM}; make room"):
        memory_mapped(tensors, disk.folder / "spool")
    disk.free()
    assert list((disk.folder / "spool").iterdir()) == []
    assert float(stored["w"].sum()) == 10_000
