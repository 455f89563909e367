"""Settings of the conformance tests."""

from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that the tests use, which is unknown outside a checkout."""
    config.addinivalue_line("markers", "slow: takes more than a third of a second")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are slower with threads, up to 40 times on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
