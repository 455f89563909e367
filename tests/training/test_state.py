"""A site's stored state: written atomically, the state before a repeated round, no code execution."""

import os
import pickle
import resource
import stat
from pathlib import Path

import pytest
import torch

from fedfms.errors import TrainingError
from fedfms.training.state import SiteState, StateStore


def _state(round_: int) -> SiteState:
    return SiteState(round_, {"w": torch.full((2,), float(round_))}, {"state": {}, "param_groups": []}, 0.5)


def test_round_trip_and_the_two_newest_are_retained(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    assert store.load() is None
    for round_ in range(4):
        store.save(_state(round_))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_00002.pt", "round_00003.pt"]
    newest = store.load()
    assert newest is not None
    assert newest.round == 3
    assert torch.equal(newest.trained["w"], torch.full((2,), 3.0))
    assert newest.best_dice == 0.5


def test_a_repeated_round_starts_from_the_state_before_it(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(_state(0))
    store.save(_state(1))
    again = store.load(before=1)
    assert again is not None
    assert again.round == 0
    assert store.load(before=0) is None


def test_going_back_removes_later_states(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for round_ in (7, 8, 9):
        store.save(_state(round_))
    with pytest.raises(TrainingError, match="the state before round 6 is missing, the oldest is of round 8"):
        store.load(before=6)
    store.save(_state(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_00008.pt"]


def test_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    StateStore(tmp_path).save(_state(0))
    assert stat.S_IMODE((tmp_path / "round_00000.pt").stat().st_mode) == 0o600


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(_state(0))
    path = tmp_path / "round_00000.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match="cannot be read"):
        store.load()


def test_a_planted_pickle_is_not_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"

    class Evil:
        def __reduce__(self) -> object:
            return os.system, (f"touch {sentinel}",)

    (tmp_path / "round_00000.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(TrainingError, match="cannot be read"):
        StateStore(tmp_path).load()
    assert not sentinel.exists()


def test_an_unfinished_write_is_not_read(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(_state(0))
    (tmp_path / ".round_00001.pt.tmp").write_bytes(b"half")
    (tmp_path / "round_00001.pt.part").write_bytes(b"half")
    newest = store.load()
    assert newest is not None
    assert newest.round == 0


def test_a_full_disk_is_reported_and_the_old_state_is_intact(tmp_path: Path) -> None:
    """Not as torch's error about its archive."""
    store = StateStore(tmp_path)
    store.save(SiteState(0, {"w": torch.zeros(1)}, {}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(TrainingError, match="the state after round 1 cannot be written .File too large."):
            store.save(SiteState(1, {"w": torch.zeros(100_000)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    state = store.load()
    assert state is not None
    assert state.round == 0
    assert len(list(tmp_path.iterdir())) == 1
