"""The compiled sum beside torch's: the same bits, and no array that it was not made for."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfms.methods import Tensors, compiled
from fedfms.methods.fedavg import weighted, weighted_by_torch

built = pytest.mark.skipif(not compiled.BUILT, reason="the package was installed without a C compiler")


def test_where_there_is_a_compiler_it_is_there() -> None:
    """Else every test below would skip, and no server be any faster. `pip install -e .` builds it."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    assert compiled.BUILT or not headers.is_file() or shutil.which("cc") is None


def _parts(sites: int, sizes: list[int], seed: int) -> list[Tensors]:
    stream = torch.Generator().manual_seed(seed)
    return [{str(size): torch.randn(size, generator=stream) * 10 for size in sizes} for _ in range(sites)]


@built
@given(
    sizes=st.lists(st.one_of(st.integers(0, 70), st.integers(4090, 4100), st.integers(8190, 13_000)), min_size=1),
    weights=st.lists(st.one_of(st.integers(1, 10**7), st.floats(1e-6, 1.0)), min_size=1, max_size=11),
    seed=st.integers(0, 99),
)
def test_the_same_bits_as_torchs(sizes: list[int], weights: list[float], seed: int) -> None:
    parts = _parts(len(weights), sizes, seed)
    assert all(compiled.takes(name, parts) for name in parts[0])
    by = sum(weights)
    ours, plain = weighted(parts, weights, by), weighted_by_torch(list(parts[0]), parts, weights, by)
    assert list(ours) == list(plain)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@built
@pytest.mark.parametrize("sites", [2, 4, 5, 8, 9])
def test_products_are_fused_where_torchs_are_to_the_last_element(sites: int) -> None:
    """x and -x leave the rounding of a product alone: another bit then is another number."""
    for size in (*range(1, 41), *range(4088, 4106)):
        one = torch.arange(1.0, size + 1).sqrt()
        parts = [{"w": one if index % 2 else -one} for index in range(sites)]
        assert torch.equal(weighted(parts, [0.1] * sites)["w"], weighted_by_torch(["w"], parts, [0.1] * sites)["w"])


@built
def test_what_it_takes_it_sums_and_torch_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedfms.methods import _mean

    sums: list[int] = []
    real = _mean.weighted
    monkeypatch.setattr(_mean, "weighted", lambda out, *more: sums.append(out.size) or real(out, *more))
    part = {"c": torch.ones(3), "a": torch.ones(5, dtype=torch.float16), "b": torch.ones(7)}
    found = weighted([part, part], [1.0, 3.0], by=4.0)
    assert sums == [3, 7]
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: part[name].dtype for name in "cab"}
    assert list(found) == ["c", "a", "b"]
    assert all(torch.equal(found[name], part[name]) for name in part)


def test_a_build_that_rounds_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def torchs(out: np.ndarray, parts: tuple[np.ndarray, ...], weights: np.ndarray, by: float) -> None:
        sums = weighted_by_torch(["w"], [{"w": torch.from_numpy(part)} for part in parts], weights.tolist(), by)
        out[:] = sums["w"].numpy()

    def another(out: np.ndarray, *more: Any) -> None:
        torchs(out, *more)
        out[-1] = np.nextafter(out[-1], np.float32(1))

    for build, agrees in ((torchs, True), (another, False)):
        monkeypatch.setattr(compiled, "_mean", SimpleNamespace(weighted=build))
        assert compiled._agrees() is agrees


def test_every_part_has_its_weight() -> None:
    with pytest.raises(ValueError, match="1 weights for 2 parts"):
        weighted([{"w": torch.ones(2)}] * 2, [1.0])


@built
def test_the_same_bits_whatever_the_pieces_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, weights = _parts(6, [1, 9_999, 50_000], 0), [0.3, 0.1, 7.0, 0.22, 1 / 3, 5.0]
    whole = weighted(parts, weights, by=3.7)
    for piece, threads in ((7, 1), (4096, 5), (10_001, 2)):
        monkeypatch.setattr(compiled, "_PIECE", piece)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        pieces = weighted(parts, weights, by=3.7)
        assert all(torch.equal(pieces[name], whole[name]) for name in whole)


@built
def test_numbers_at_the_ends_of_the_range() -> None:
    ends = torch.tensor([3.4e38, -3.4e38, 1e-45, -1e-45, 0.0, -0.0, float("inf"), float("nan")])
    parts = [{"w": ends}, {"w": ends.roll(1)}, {"w": ends}]
    ours, plain = weighted(parts, [1.0, 1e7, 3.0], 5.0)["w"], weighted_by_torch(["w"], parts, [1.0, 1e7, 3.0], 5.0)["w"]
    assert torch.equal(ours.nan_to_num(7.0), plain.nan_to_num(7.0))


@pytest.mark.parametrize(
    "other",
    [torch.zeros(4, 6, dtype=torch.float16), torch.zeros(6, 4), torch.zeros(6, 4).T, torch.zeros(4, 6).to("meta"),
     torch.zeros(4, 6, dtype=torch.int32), torch.frombuffer(bytearray(97), dtype=torch.float32, offset=1).view(4, 6),
     torch.zeros(4, 6, dtype=torch.complex64).conj().imag],
    ids=["float16", "shape", "transposed", "elsewhere", "whole numbers", "between addresses", "to be negated"],
)  # fmt: skip
def test_what_it_does_not_take(other: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BUILT", True)
    assert compiled.takes("w", [{"w": torch.zeros(4, 6)}, {"w": torch.ones(4, 6)}])
    assert not compiled.takes("w", [{"w": torch.zeros(4, 6)}, {"w": other}])


def _readonly(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


OUT, PART, ONE = np.zeros(8, np.float32), np.ones(8, np.float32), np.ones(1)


@built
@pytest.mark.parametrize(
    ("out", "parts", "weights"),
    [(np.zeros(8), (PART,), ONE), (OUT, (np.ones(8),), ONE), (OUT, (np.ones(7, np.float32),), ONE),
     (OUT, (PART, PART), ONE), (OUT, (PART,), np.ones(1, np.float32)), (OUT, (PART.astype(">f4"),), ONE),
     (OUT, (np.ones(16, np.float32)[::2],), ONE), (_readonly(np.zeros(8, np.float32)), (PART,), ONE),
     (OUT, (PART, np.ones(9, np.float32)), np.ones(2)), (OUT, (None,), ONE), (OUT, [PART], ONE)],
    ids=["out of doubles", "part of doubles", "short", "a weight missing", "weights of floats", "turned bytes",
         "strided", "read-only", "long", "none", "a list"],
)  # fmt: skip
def test_no_other_array_is_read_or_written(out: np.ndarray, parts: tuple, weights: np.ndarray) -> None:
    from fedfms.methods import _mean

    before = out.copy()
    with pytest.raises((ValueError, BufferError, TypeError)):
        _mean.weighted(out, parts, weights, 1.0)
    assert np.array_equal(out, before)
