"""Memory-mapped updates: the same bits, no visible file, nothing left behind, no path in an error."""

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
    "transposed": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    "half": np.array([1.5, -2.0, 60000.0], np.float16),
    "steps": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}


def test_values_shapes_dtypes_and_order_are_preserved(tmp_path: Path) -> None:
    mapped = memory_mapped(ARRAYS.items(), tmp_path / "updates")
    assert list(mapped) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert torch.equal(mapped[name], torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape))
        assert mapped[name].dtype == torch.from_numpy(array).dtype
    assert memory_mapped([], tmp_path) == {}


def test_arrays_are_consumed_one_at_a_time(tmp_path: Path) -> None:
    def one_by_one() -> object:
        for index in range(3):
            array = np.full(4, float(index))
            yield str(index), array
            array.fill(-1)  # it is on disk when the next is requested

    mapped = memory_mapped(one_by_one(), tmp_path)
    assert [float(tensor[0]) for tensor in mapped.values()] == [0, 1, 2]


def test_the_file_has_no_name_and_writing_to_a_tensor_changes_no_other(tmp_path: Path) -> None:
    first, second = memory_mapped(ARRAYS.items(), tmp_path), memory_mapped(ARRAYS.items(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    first["w"].zero_()
    assert torch.equal(second["w"], torch.from_numpy(ARRAYS["w"]))


@pytest.mark.slow
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal, pathlib, numpy as np\n"
        "from fedfms.federation.memory_mapped import memory_mapped\n"
        "mapped = memory_mapped([('w', np.zeros(1000))], pathlib.Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "updates")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "updates").iterdir()) == []


def test_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "updates").mkdir()
    (tmp_path / "updates" / "tmp123").write_bytes(b"a site's tensors")
    clear(tmp_path / "updates")
    clear(tmp_path / "updates")
    assert not (tmp_path / "updates").exists()


def test_a_full_disk_is_reported_in_one_line_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UpdateError, match="the server cannot store it") as error:
        memory_mapped(ARRAYS.items(), tmp_path / "file" / "updates")
    assert str(tmp_path) not in error.value.line()
