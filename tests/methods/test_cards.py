"""Every method has a card with commands; the figures of methods without their own test file."""

import re

import pytest

from fedfms.methods import METHODS
from tests.methods.common import ROOT, card, card_states, vit_b


@pytest.mark.parametrize(("method", "structures"), [("fedmsa", 2), ("fedmsa", 1), ("fedsam", 2), ("local", 2)])
def test_the_card_states_what_is_sent(method: str, structures: int) -> None:
    partition, sizes = vit_b(method, structures)
    assert card_states(method, sum(sizes[name] for name in partition.shared))


def test_every_card_belongs_to_a_method() -> None:
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == set(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_card_states_how_to_run_it(method: str) -> None:
    lines = re.findall(r"^    (\S.*)$", card(method), re.MULTILINE)
    assert any(re.match(rf"fedfms job build {method}(?!\S)", line) for line in lines)
    simulator = [line.split("#")[0].split() for line in lines if line.startswith("nvflare simulator")]
    assert simulator
    # The job names its sites; NVFLARE accepts either names or a number.
    assert not any(word.startswith("-n") for words in simulator for word in words)
