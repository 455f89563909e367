"""As test_simulator, of the methods by which every site ends with a model of its own: about half of the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.methods import METHODS

from .common import assert_simulator_equals_reference
from .conftest import Simulator

pytestmark = [pytest.mark.federation, pytest.mark.slow]


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if method.personal))
def test_the_simulator_equals_the_reference(method: str, simulate: Simulator, tmp_path: Path) -> None:
    assert_simulator_equals_reference(method, simulate, tmp_path)
