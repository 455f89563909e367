"""Sample-weighted averaging: by hand, and independent of order and dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfms.errors import UpdateError
from fedfms.methods import Update
from fedfms.methods.fedavg import weighted_mean


def _update(site: str, values: list[float], samples: int, dtype: torch.dtype = torch.float32) -> Update:
    return Update(site, {"w": torch.tensor(values, dtype=dtype)}, samples)


def test_three_sites_by_hand() -> None:
    updates = [_update("a", [1.0, 0.0], 10), _update("b", [2.0, -4.0], 30), _update("c", [4.0, 8.0], 60)]
    # (10*1 + 30*2 + 60*4) / 100 = 3.1 and (0 - 120 + 480) / 100 = 3.6
    assert torch.equal(weighted_mean(updates)["w"], torch.tensor([3.1, 3.6]))


@given(st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.integers(1, 1000)), min_size=1, max_size=8), st.randoms())
def test_order_of_arrival_does_not_change_a_bit(rows: list[tuple[float, int]], random: object) -> None:
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
