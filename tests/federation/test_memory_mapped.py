"""Updates put by on disk: the same bits, no name, nothing left behind, no fault that shows a path."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfms.errors import UpdateError
from fedfms.federation.memory_mapped import clear, memory_mapped

ARRAYS = {
    "w": np.random.default_rng(0).standard_normal((3, 5), dtype=np.float32),
    "turned": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    "half": np.array([1.5, -2.0, 60000.0], np.float16),
    "steps": np.array(7, np.int64),
    "none": np.zeros((0, 4), np.float32),
}


def test_values_shapes_dtypes_and_order_are_kept(tmp_path: Path) -> None:
    kept = memory_mapped(ARRAYS.items(), tmp_path / "spool")
    assert list(kept) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert torch.equal(kept[name], torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape))
        assert kept[name].dtype == torch.from_numpy(array).dtype
    assert memory_mapped([], tmp_path) == {}


def test_one_array_after_another_is_asked_for(tmp_path: Path) -> None:
    def one_by_one() -> object:
        for index in range(3):
            array = np.full(4, float(index))
            yield str(index), array
            array.fill(-1)  # it was written when the next is asked for

    kept = memory_mapped(one_by_one(), tmp_path)
    assert [float(tensor[0]) for tensor in kept.values()] == [0, 1, 2]


def test_no_file_is_to_be_seen_and_what_writes_to_a_tensor_changes_no_other(tmp_path: Path) -> None:
    first, second = memory_mapped(ARRAYS.items(), tmp_path), memory_mapped(ARRAYS.items(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    first["w"].zero_()
    assert torch.equal(second["w"], torch.from_numpy(ARRAYS["w"]))


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal, pathlib, numpy as np\n"
        "from fedfms.federation.memory_mapped import memory_mapped\n"
        "kept = memory_mapped([('w', np.zeros(1000))], pathlib.Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "spool")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "spool").iterdir()) == []


def test_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "tmp123").write_bytes(b"a site's tensors")
    clear(tmp_path / "spool")
    clear(tmp_path / "spool")
    assert not (tmp_path / "spool").exists()


def test_no_room_is_told_in_one_line_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UpdateError, match="the server cannot keep it") as told:
        memory_mapped(ARRAYS.items(), tmp_path / "file" / "spool")
    assert str(tmp_path) not in told.value.line()
