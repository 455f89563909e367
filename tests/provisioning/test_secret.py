"""Where passphrases come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.errors import ProvisioningError
from provisioning.secret import ENV, MIN_LENGTH, make_passphrase, passphrase


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("of the file, long enough\n")
    path.chmod(0o600)
    return path


def test_a_file_of_its_owner_comes_before_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, "of the environment")
    assert passphrase(file) == "of the file, long enough"
    assert passphrase(None) == "of the environment"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_use_is_refused(mode: int, file: Path) -> None:
    file.chmod(mode)
    with pytest.raises(ProvisioningError, match="others can read"):
        passphrase(file)


def test_a_new_one_must_be_long_enough(file: Path) -> None:
    file.write_text("x" * (MIN_LENGTH - 1))
    with pytest.raises(ProvisioningError, match="too short"):
        passphrase(file, new=True)


def test_without_any_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV, raising=False)
    with pytest.raises(ProvisioningError, match="no passphrase"):
        passphrase(None)
    with pytest.raises(ProvisioningError, match="cannot be read") as told:
        passphrase(tmp_path / "none")
    assert str(tmp_path) not in str(told.value)


def test_those_that_are_made_differ_and_are_easy_to_read_out() -> None:
    made = {make_passphrase() for _ in range(20)}
    assert len(made) == 20
    assert all(len(one) == 29 and not set(one) & set("01ilo") for one in made)
