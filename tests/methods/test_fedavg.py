"""Sample-weighted averaging by hand, and its independence of order and dtype."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfms.errors import UpdateError
from fedfms.methods import Tensors, Update, fedavg
from fedfms.methods.fedavg import cast_back, weighted_mean, weighted_sum


def _update(site: str, values: list[float], samples: int, dtype: torch.dtype = torch.float32) -> Update:
    return Update(site, {"w": torch.tensor(values, dtype=dtype)}, samples)


def test_three_sites_by_hand() -> None:
    updates = [_update("a", [1.0, 0.0], 10), _update("b", [2.0, -4.0], 30), _update("c", [4.0, 8.0], 60)]
    # (10*1 + 30*2 + 60*4) / 100 = 3.1 and (0 - 120 + 480) / 100 = 3.6
    assert torch.equal(weighted_mean(updates)["w"], torch.tensor([3.1, 3.6]))


@given(st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.integers(1, 1000)), min_size=1, max_size=8), st.randoms())
def test_the_order_of_arrival_does_not_matter(rows: list[tuple[float, int]], random: object) -> None:
    updates = [_update(f"site-{i}", [value], samples) for i, (value, samples) in enumerate(rows)]
    shuffled = list(updates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert torch.equal(weighted_mean(updates)["w"], weighted_mean(shuffled)["w"])


def test_float16_does_not_overflow_in_the_sum() -> None:
    updates = [_update(s, [60000.0], 1000, torch.float16) for s in "abc"]
    mean = weighted_mean(updates)["w"]
    assert mean.dtype == torch.float16
    assert mean.item() == 60000.0


def test_no_samples_is_an_error() -> None:
    with pytest.raises(UpdateError, match="no samples"):
        weighted_mean([_update("a", [1.0], 0)])


def _whole(parts: list[Tensors], weights: list[float], by: float) -> Tensors:
    """The mean by its formula: whole tensors in float64."""
    out = {}
    for name, first in parts[0].items():
        total = torch.zeros(first.shape, dtype=torch.float64)
        for part, weight in zip(parts, weights, strict=True):
            total.add_(part[name].to(torch.float64), alpha=weight)
        out[name] = cast_back(total.div_(by), first.dtype)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_the_blockwise_sum_gives_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedavg, "_BLOCK", 64)
    stream = torch.Generator().manual_seed(0)
    shapes = {"a": (), "b": (0, 3), "c": (63,), "d": (8, 8), "e": (5, 13), "f": (3, 1001)}
    parts = [
        {name: torch.randn(shape, generator=stream).mul(9).to(dtype) for name, shape in shapes.items()}
        | {"turned": torch.randn(20, 30, generator=stream).mul(9).to(dtype).T}
        for _ in range(7)
    ]
    for weights in ([3.0, 1.0, 20.0, 7.0, 400.0, 11.0, 5.0], [0.1, 0.2, 0.3, 0.05, 0.15, 0.123456789, 0.07]):
        ours, plain = weighted_sum(parts, weights, by=sum(weights)), _whole(parts, weights, by=sum(weights))
        assert all(torch.equal(ours[name], plain[name]) for name in plain)
        assert all(ours[name].dtype == dtype and ours[name].shape == plain[name].shape for name in plain)


def test_the_real_block_gives_the_same_bits_at_its_edges() -> None:
    sizes = [fedavg._BLOCK * torch.get_num_threads() + more for more in (-1, 0, 1, 12345)]
    parts = [{str(size): torch.randn(size) for size in sizes} for _ in range(3)]
    ours, plain = weighted_sum(parts, [0.3, 0.21, 0.7], by=1.21), _whole(parts, [0.3, 0.21, 0.7], by=1.21)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
