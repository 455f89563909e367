"""Fixtures for the tests of preprocessing."""

import pytest

from tests.preprocessing.make import make_raw


@pytest.fixture
def raw(tmp_path):
    """A raw folder of six pairs."""
    return make_raw(tmp_path / "raw")


@pytest.fixture
def out(tmp_path):
    """A data root that does not exist yet."""
    return tmp_path / "out"
