"""Sizes with units."""

import pytest

from fedfms.units import size_text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0.0 MB"), (12, "12 bytes"), (18_920, "18.9 kB"), (100_000, "0.1 MB"), (44_100_000, "44.1 MB"),
     (1_593_700_000, "1,593.7 MB")],
)  # fmt: skip
def test_sizes(nbytes: float, text: str) -> None:
    assert size_text(nbytes) == text
