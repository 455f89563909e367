"""Starting a kit logs that its certificate has expired or will soon."""

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fedfms.flare.certificate_expiry import CertificateExpiryCheck


def _certificate(path: Path, left: timedelta) -> Path:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - timedelta(days=360)).not_valid_after(now + left)
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("left", "level", "message"),
    [
        (timedelta(minutes=-1), logging.ERROR, "expired on"),
        (timedelta(minutes=1), logging.WARNING, "in 0 days"),
        (timedelta(days=29, hours=1), logging.WARNING, "in 29 days"),
    ],
)
def test_expiry_is_logged(
    left: timedelta, level: int, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CertificateExpiryCheck(str(_certificate(tmp_path / "client.crt", left)))
    ((_, found, line),) = caplog.record_tuples
    assert found == level and message in line and line.endswith("ask the lead for a new kit")


def test_a_relative_path_starts_at_the_kits_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "startup").mkdir()
    _certificate(tmp_path / "startup" / "client.crt", timedelta(days=29, hours=1))
    monkeypatch.chdir(tmp_path)
    CertificateExpiryCheck("startup/client.crt")
    assert "in 29 days" in caplog.text


def test_a_certificate_with_enough_days_left_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CertificateExpiryCheck(str(_certificate(tmp_path / "client.crt", timedelta(days=31))))
    assert not caplog.records


@pytest.mark.parametrize("content", [None, b"not a certificate"])
def test_an_unreadable_certificate_is_only_a_warning(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if content is not None:
        (tmp_path / "client.crt").write_bytes(content)
    CertificateExpiryCheck(str(tmp_path / "client.crt"))
    assert "cannot be read" in caplog.text and str(tmp_path) not in caplog.text
