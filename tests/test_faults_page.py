"""The table of faults names existing tests."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (REPO / "docs/results/faults.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_row_names_an_existing_test(file: str, test: str) -> None:
    assert f"def {test or 'test_'}" in (REPO / file).read_text(encoding="utf-8")
