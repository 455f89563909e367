"""The server's list of blocked certificates, on NVFLARE's own verifier and client manager."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.lighter.utils import Identity, generate_cert, generate_keys, sign_content
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.utils.identity_utils import CNMismatch, IdentityVerifier, InvalidAsserterCert

from fedfms.flare.revocation import RevokedCertificates

Keyed = tuple[x509.Certificate, Any]


@pytest.fixture
def root(tmp_path: Path) -> Keyed:
    key, public = generate_keys()
    now = datetime.datetime.now(datetime.timezone.utc)
    made = generate_cert(Identity("study"), Identity("study"), key, public, ca=True, not_valid_before=now)
    (tmp_path / "rootCA.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return made, key


@pytest.fixture
def blocked(root: Keyed, tmp_path: Path) -> Iterator[Path]:
    """The list's file, of a server that has it; NVFLARE's classes are as they were afterwards."""
    verify, heartbeat = IdentityVerifier.verify_common_name, ClientManager.heartbeat
    (tmp_path / "blocked.json").write_text('{"serials": {}}')
    RevokedCertificates(str(tmp_path / "blocked.json"))
    yield tmp_path / "blocked.json"
    IdentityVerifier.verify_common_name, ClientManager.heartbeat = verify, heartbeat


def _site(root: Keyed, name: str) -> Keyed:
    key, public = generate_keys()
    return generate_cert(Identity(name, "org"), Identity("study"), root[1], public), key


def _verify(site: Keyed, folder: Path, name: str = "site-1") -> bool:
    verifier = IdentityVerifier(str(folder / "rootCA.pem"))
    signature = sign_content(name + "nonce", site[1], return_str=False)
    return verifier.verify_common_name(
        asserted_cn=name, nonce="nonce", asserter_cert=site[0], signature=signature, intermediate_certs=[]
    )


def _block(path: Path, site: Keyed, name: str = "site-1") -> None:
    path.write_text(json.dumps({"serials": {format(site[0].serial_number, "x").upper(): name}}))


def test_nvflare_alone_takes_a_certificate_for_as_long_as_it_lasts(root: Keyed, tmp_path: Path) -> None:
    """What the list is for: nothing in NVFLARE asks whether a certificate was given up."""
    assert _verify(_site(root, "site-1"), tmp_path)
    assert not hasattr(IdentityVerifier.verify_common_name, "__wrapped__")


def test_a_blocked_serial_is_refused_at_once_and_a_new_one_of_the_same_name_is_not(
    root: Keyed, blocked: Path, tmp_path: Path
) -> None:
    lost, new = _site(root, "site-1"), _site(root, "site-1")
    assert _verify(lost, tmp_path)
    _block(blocked, lost)
    with pytest.raises(InvalidAsserterCert, match="of site-1 is blocked"):
        _verify(lost, tmp_path)
    assert _verify(new, tmp_path)


def test_another_ca_and_another_name_are_refused_as_before(root: Keyed, blocked: Path, tmp_path: Path) -> None:
    foreign = (None, generate_keys()[0])
    with pytest.raises(InvalidAsserterCert):
        _verify(_site(foreign, "site-1"), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(CNMismatch):
        _verify(_site(root, "site-2"), tmp_path)


def test_a_list_that_cannot_be_read_lets_nobody_in(root: Keyed, blocked: Path, tmp_path: Path) -> None:
    for content in ("", "{}", '{"serials": []}'):
        blocked.write_text(content)
        with pytest.raises(ValueError, match="cannot be read"):
            _verify(_site(root, "site-1"), tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        RevokedCertificates(str(tmp_path / "none"))


def test_a_site_that_is_in_already_is_put_out_until_it_shows_a_certificate_that_is_not_blocked(
    root: Keyed, blocked: Path, tmp_path: Path
) -> None:
    lost, new = _site(root, "site-1"), _site(root, "site-1")
    manager = ClientManager(project_name="study")

    def beats(name: str = "site-1") -> str | None:
        context = FLContext()
        manager.heartbeat(f"token of {name}", name, name, context)
        told: str | None = context.get_prop(FLContextKey.UNAUTHENTICATED)
        return told

    _verify(lost, tmp_path)
    assert beats() is None and "token of site-1" in manager.clients
    _block(blocked, lost)
    assert "a certificate of site-1 is blocked" in str(beats())
    assert manager.clients == {}
    assert beats("site-2") is None
    _verify(new, tmp_path)
    assert beats() is None
