"""A kit's certificate that has ended, or is about to, is told when the kit is started."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fedfms.flare.certificate_expiry import CertificateEnds


def _certificate(path: Path, left: timedelta) -> Path:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - timedelta(days=360)).not_valid_after(now + left)
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("left", "level", "told"),
    [
        (timedelta(minutes=-1), logging.ERROR, "ended on"),
        (timedelta(minutes=1), logging.WARNING, "in 0 days"),
        (timedelta(days=29, hours=1), logging.WARNING, "in 29 days"),
    ],
)
def test_the_end_is_told(
    left: timedelta, level: int, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CertificateEnds(str(_certificate(tmp_path / "client.crt", left)))
    ((_, found, line),) = caplog.record_tuples
    assert found == level and told in line and line.endswith("ask the lead for a new kit")


def test_a_place_in_the_kit_is_found_from_the_kits_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "startup").mkdir()
    _certificate(tmp_path / "startup" / "client.crt", timedelta(days=29, hours=1))
    monkeypatch.chdir(tmp_path)
    CertificateEnds("startup/client.crt")
    assert "in 29 days" in caplog.text


def test_of_one_that_is_good_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CertificateEnds(str(_certificate(tmp_path / "client.crt", timedelta(days=31))))
    assert not caplog.records


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_one_that_cannot_be_read_stops_nothing(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if content is not None:
        (tmp_path / "client.crt").write_bytes(content)
    CertificateEnds(str(tmp_path / "client.crt"))
    assert "cannot be read" in caplog.text and str(tmp_path) not in caplog.text
