"""As test_simulator, for methods that give each site a personal model."""

from pathlib import Path

import pytest

from .common import assert_simulator_equals_reference
from .conftest import Simulator

pytestmark = [pytest.mark.federation, pytest.mark.slow]


# One of each kind: stored tensors; two optimizers; a mixture for each site; nothing shared.
@pytest.mark.parametrize("method", ["fedala", "feddbe", "fedsca", "local"])
def test_the_simulator_equals_the_reference(method: str, simulate: Simulator, tmp_path: Path) -> None:
    assert_simulator_equals_reference(method, simulate, tmp_path)
