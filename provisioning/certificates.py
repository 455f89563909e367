"""The certificates that a federation's lead has issued (`issued.jsonl`), and the root's certificate and key."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from cryptography import x509
from pydantic.dataclasses import dataclass

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.kit import common_name
from fedfms.flare.nvflare_cli import LENIENT
from fedfms.schema import STRICT, parse_bytes, to_plain

ISSUED = "issued.jsonl"


@dataclass(frozen=True, config=STRICT)
class IssuedCertificate:
    """A certificate of a participant."""

    name: str
    type: str
    serial: str
    """Hexadecimal."""
    expires: datetime
    issued: datetime
    state: Literal["current", "renewed", "revoked"] = "current"
    """renewed: there is a newer one of that name."""

    @classmethod
    def of(cls, certificate: x509.Certificate, kind: str) -> IssuedCertificate:
        """The record of a certificate that was issued now to a participant of that type."""
        serial, now = format(certificate.serial_number, "x"), datetime.now(timezone.utc).replace(microsecond=0)
        return cls(common_name(certificate), kind, serial, certificate.not_valid_after_utc, now)


@dataclass(frozen=True, config=LENIENT)
class RootState:
    """The root's certificate and private key (PEM), as NVFLARE's `state/cert.json` names them."""

    root_cert: str
    root_pri_key: str


def read_issued(folder: Path) -> list[IssuedCertificate]:
    """All issued certificates of a federation, in order."""
    path = folder / ISSUED
    return [
        parse_bytes(IssuedCertificate, line, ProvisioningError, where=ISSUED, do="restore it from a backup")
        for line in (path.read_bytes().splitlines() if path.is_file() else ())
    ]


def write_issued(folder: Path, issued: Iterable[IssuedCertificate]) -> None:
    """Replace the list of issued certificates."""
    write_atomic(folder / ISSUED, "".join(json.dumps(to_plain(one)) + "\n" for one in issued), mode=0o600)


def read_root(path: Path) -> RootState:
    """The root's certificate and key in NVFLARE's `cert.json`; errors do not show its content."""
    return parse_bytes(RootState, path.read_bytes(), ProvisioningError, where=path.name, machine_written=True)
