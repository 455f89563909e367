"""Every method has a card, with commands that run; the figures of those without a test file of their own."""

from __future__ import annotations

import re

import pytest

from fedfms.methods import METHODS
from tests.methods.common import ROOT, card, card_says, vit_b


@pytest.mark.parametrize(("method", "structures"), [("fedmsa", 2), ("fedmsa", 1), ("fedsam", 2), ("local", 2)])
def test_the_card_tells_what_travels(method: str, structures: int) -> None:
    partition, sizes = vit_b(method, structures)
    assert card_says(method, sum(sizes[name] for name in partition.shared))


def test_every_card_is_a_methods() -> None:
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == set(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_card_tells_how_to_run_it(method: str) -> None:
    lines = re.findall(r"^    (\S.*)$", card(method), re.MULTILINE)
    assert any(re.match(rf"fedfms job build {method}(?!\S)", line) for line in lines)
    simulator = [line.split("#")[0].split() for line in lines if line.startswith("nvflare simulator")]
    assert simulator
    # The job names its sites, and FLARE takes either names or a number.
    assert not any(word.startswith("-n") for words in simulator for word in words)
