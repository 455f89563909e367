"""Sources of passphrases."""

from pathlib import Path

import pytest

from fedfms.errors import ProvisioningError
from fedfms.provisioning.passphrase import MIN_LENGTH, PASSPHRASE_VARIABLE, generate_passphrase, read_passphrase


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("of the file, long enough\n")
    path.chmod(0o600)
    return path


def test_the_file_takes_precedence_over_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "of the environment")
    assert read_passphrase(file) == "of the file, long enough"
    assert read_passphrase(None) == "of the environment"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_access_is_rejected(mode: int, file: Path) -> None:
    file.chmod(mode)
    with pytest.raises(ProvisioningError, match="others can read"):
        read_passphrase(file)


def test_a_new_passphrase_must_be_long_enough(file: Path) -> None:
    file.write_text("x" * (MIN_LENGTH - 1))
    with pytest.raises(ProvisioningError, match="too short"):
        read_passphrase(file, new=True)


def test_a_missing_passphrase_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    with pytest.raises(ProvisioningError, match="no passphrase"):
        read_passphrase(None)
    with pytest.raises(ProvisioningError, match="cannot be read") as error:
        read_passphrase(tmp_path / "none")
    assert str(tmp_path) not in str(error.value)


def test_generated_passphrases_differ_and_are_easy_to_read_out() -> None:
    made = {generate_passphrase() for _ in range(20)}
    assert len(made) == 20
    assert all(len(one) == 29 and not set(one) & set("01ilo") for one in made)
