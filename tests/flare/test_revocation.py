"""Certificate revocation, with NVFLARE's own verifier and client manager."""

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

from fedfms.flare.revocation import CertificateRevocation

Keyed = tuple[x509.Certificate, Any]


@pytest.fixture
def root(tmp_path: Path) -> Keyed:
    key, public = generate_keys()
    now = datetime.datetime.now(datetime.timezone.utc)
    made = generate_cert(Identity("study"), Identity("study"), key, public, ca=True, not_valid_before=now)
    (tmp_path / "rootCA.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return made, key


@pytest.fixture
def revoked(root: Keyed, tmp_path: Path) -> Iterator[Path]:
    """The revocation list of a server that checks it; NVFLARE's classes are restored afterwards."""
    verify, heartbeat = IdentityVerifier.verify_common_name, ClientManager.heartbeat
    (tmp_path / "revoked.json").write_text('{"serials": {}}')
    CertificateRevocation(str(tmp_path / "revoked.json"))
    yield tmp_path / "revoked.json"
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


def _revoke(path: Path, site: Keyed, name: str = "site-1") -> None:
    path.write_text(json.dumps({"serials": {format(site[0].serial_number, "x").upper(): name}}))


def test_nvflare_alone_accepts_a_certificate_until_it_expires(root: Keyed, tmp_path: Path) -> None:
    """Why the list is needed: NVFLARE has no revocation."""
    assert _verify(_site(root, "site-1"), tmp_path)
    assert not hasattr(IdentityVerifier.verify_common_name, "__wrapped__")


def test_a_revoked_serial_is_rejected_at_once_but_a_new_certificate_of_the_same_name_is_accepted(
    root: Keyed, revoked: Path, tmp_path: Path
) -> None:
    lost, new = _site(root, "site-1"), _site(root, "site-1")
    assert _verify(lost, tmp_path)
    _revoke(revoked, lost)
    with pytest.raises(InvalidAsserterCert, match="of site-1 is revoked"):
        _verify(lost, tmp_path)
    assert _verify(new, tmp_path)


def test_another_root_and_another_name_are_still_rejected(root: Keyed, revoked: Path, tmp_path: Path) -> None:
    foreign = (None, generate_keys()[0])
    with pytest.raises(InvalidAsserterCert):
        _verify(_site(foreign, "site-1"), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(CNMismatch):
        _verify(_site(root, "site-2"), tmp_path)


def test_an_unreadable_list_rejects_everyone(root: Keyed, revoked: Path, tmp_path: Path) -> None:
    for content in ("", "{}", '{"serials": []}'):
        revoked.write_text(content)
        with pytest.raises(ValueError, match="cannot be read"):
            _verify(_site(root, "site-1"), tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        CertificateRevocation(str(tmp_path / "none"))


def test_a_registered_site_is_removed_until_it_shows_a_valid_certificate(
    root: Keyed, revoked: Path, tmp_path: Path
) -> None:
    lost, new = _site(root, "site-1"), _site(root, "site-1")
    manager = ClientManager(project_name="study")

    def heartbeat(name: str = "site-1") -> str | None:
        """The rejection message, if any."""
        context = FLContext()
        manager.heartbeat(f"token of {name}", name, name, context)
        message: str | None = context.get_prop(FLContextKey.UNAUTHENTICATED)
        return message

    _verify(lost, tmp_path)
    assert heartbeat() is None and "token of site-1" in manager.clients
    _revoke(revoked, lost)
    assert "a certificate of site-1 is revoked" in str(heartbeat())
    assert manager.clients == {}
    assert heartbeat("site-2") is None
    _verify(new, tmp_path)
    assert heartbeat() is None
