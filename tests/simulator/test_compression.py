"""As test_simulator, with each codec: one global model, parts of it, a mixture for each site."""

from pathlib import Path

import pytest

from .common import assert_simulator_equals_reference
from .conftest import Simulator

pytestmark = [pytest.mark.federation, pytest.mark.slow]


@pytest.mark.parametrize(("method", "compression"), [("fedmsa", "float16"), ("fedra", "bfloat16"), ("fedsca", "int8")])
def test_the_simulator_equals_the_reference(method: str, compression: str, simulate: Simulator, tmp_path: Path) -> None:
    assert_simulator_equals_reference(method, simulate, tmp_path, compression)
