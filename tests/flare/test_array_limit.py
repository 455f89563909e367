"""The limit on arrays applies to their declared size, before they are allocated."""

import io
import json
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.app_common.np.np_downloader import ArrayConsumer
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs import FOBSContextKey

from fedfms.flare import array_limit


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A limit of 1 MB; NVFLARE's methods are restored after the test."""
    for owner, name in (
        (NumpyArrayDecomposer, "native_recompose"), (ArrayConsumer, "consume_items"),
        (TensorDecomposer, "native_recompose"), (TensorDecomposer, "download"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(array_limit, "EXTRA_BYTES", 0)
    array_limit.limit_arrays(250_000)
    yield


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_arrays_within_the_limit_are_decoded() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(NumpyArrayDecomposer().native_recompose(_npy(array)), array)
    assert np.array_equal(ArrayConsumer(None, {}).consume_items([_npz(w=array)], None)["w"], array)


def test_an_array_that_declares_a_larger_size_is_not_allocated() -> None:
    small = _npy(np.zeros(10, np.float32))
    liar = small.replace(b"(10,)", b"(10000000000,)")  # of the same length: the header is padded
    with pytest.raises(ValueError, match="MB; the limit is 1 MB|header"):
        NumpyArrayDecomposer().native_recompose(liar)
    with pytest.raises(ValueError, match="a message holds arrays of 4 MB; the limit is 1 MB"):
        NumpyArrayDecomposer().native_recompose(_npy(np.zeros(1_000_000, np.float32)))


def test_a_small_zip_file_of_a_large_array_is_not_unpacked() -> None:
    item = _npz(w=np.zeros(50_000_000, np.uint8))
    assert len(item) < 100_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="arrays of 50 MB"):
        ArrayConsumer(None, {}).consume_items([item], None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_chunks_are_summed() -> None:
    consumer, decoded = ArrayConsumer(None, {}), None
    for index in range(2):
        decoded = consumer.consume_items([_npz(**{str(index): np.zeros(400_000, np.uint8)})], decoded)
    with pytest.raises(ValueError, match="the limit is 1 MB"):
        consumer.consume_items([_npz(last=np.zeros(400_000, np.uint8))], decoded)


def test_arrays_of_objects_are_rejected() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="objects"):
        NumpyArrayDecomposer().native_recompose(file.getvalue())


def test_torch_tensors_are_not_decoded() -> None:
    fobs.register(TensorDecomposer)  # as NVFLARE's persistor does at the server
    message = fobs.dumps({"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="a message holds a torch tensor"):
        fobs.loads(message)


@pytest.mark.parametrize("to_disk", [False, True])
def test_torch_tensors_are_not_downloaded(to_disk: bool) -> None:
    """Not even the first chunk, whether NVFLARE stores them in memory or on disk."""
    reference = SimpleNamespace(dot=0, value=json.dumps({"fqcn": "site-1.job", "ref_id": "1"}))
    requests: list[object] = []
    cell = SimpleNamespace(
        get_fobs_context=lambda: {FOBSContextKey.TENSOR_DISK_OFFLOAD: to_disk},
        send_request=lambda *args, **_: requests.append(args),
    )
    with pytest.raises(ValueError, match="a message holds a torch tensor"):
        TensorDecomposer().process_datum(reference, SimpleNamespace(fobs_ctx={FOBSContextKey.CELL: cell}))
    assert not requests
