"""The figures in the cards of the methods that have no test file of their own."""

from __future__ import annotations

import pytest

from tests.methods.common import card_says, vit_b


@pytest.mark.parametrize(("method", "structures"), [("fedmsa", 2), ("fedmsa", 1), ("fedsam", 2), ("local", 2)])
def test_the_card_tells_what_travels(method: str, structures: int) -> None:
    partition, sizes = vit_b(method, structures)
    assert card_says(method, sum(sizes[name] for name in partition.shared))
