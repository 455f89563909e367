"""Certificate revocation at the server, which NVFLARE does not have.

Sites at registration and admins at login show their certificate to `IdentityVerifier.verify_common_name`, the only
place in NVFLARE 2.9 where the server sees a serial number. This component, named by the server's
`local/resources.json`, adds the revocation check there. A registered site is known by a token, which survives a
restart of the server. So the component also rejects heartbeats of a site with a revoked certificate until it has
shown a valid one.

The revocation list is read at each check: a change takes effect without a restart.
"""

import functools
import threading
from pathlib import Path
from typing import Any

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.utils.identity_utils import IdentityVerifier, InvalidAsserterCert, get_cn_from_cert
from pydantic.dataclasses import dataclass

from fedfms.errors import ProvisioningError
from fedfms.schema import STRICT, parse_bytes

ACTION = "fedfms.certificate_revoked"  # in the server's audit.log


@dataclass(frozen=True, config=STRICT)
class RevocationList:
    """The content of a revocation list: names of participants by serial number (hexadecimal)."""

    serials: dict[str, str]


def patch_method(owner: type, name: str, replacement: Any) -> None:
    """Replace a method of NVFLARE by `replacement(original, self, ...)`; a second patch replaces the first."""
    original = getattr(owner, name)
    original = getattr(original, "__wrapped__", original)

    @functools.wraps(original)
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return replacement(functools.partial(original, self), self, *args, **kwargs)

    setattr(owner, name, patched)


class CertificateRevocation(FLComponent):
    """Rejects certificates whose serial number is on the revocation list.

    Args:
        file: absolute path of a JSON file: `{"serials": {"3f0c...": "site-2"}}`.

    Raises:
        ValueError: the file cannot be read: the server must not start without it.
        AttributeError: NVFLARE has changed the method that verifies certificates.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file)
        self._lock = threading.Lock()
        self._last_serial: dict[str, str] = {}  # by name: the serial verified last since the server started
        self.serials()
        patch_method(IdentityVerifier, "verify_common_name", self._verify)
        patch_method(ClientManager, "heartbeat", self._heartbeat)

    def serials(self) -> dict[str, str]:
        """Names of participants by the serial number of their revoked certificates."""
        try:
            found = parse_bytes(RevocationList, self._file.read_bytes(), ProvisioningError)
        except (OSError, ProvisioningError):
            raise ValueError("the certificate revocation list cannot be read") from None
        return {serial.lower(): name for serial, name in found.serials.items()}

    def _verify(self, original: Any, _: Any, *args: Any, **kwargs: Any) -> bool:
        certificate = kwargs.get("asserter_cert") or next(one for one in args if hasattr(one, "serial_number"))
        serial, name = format(certificate.serial_number, "x"), str(get_cn_from_cert(certificate))
        if serial in self.serials():
            message = f"the certificate {serial} of {name} is revoked"
            self.logger.error(f"fedfms: {message}")
            AuditService.add_event(user=name, action=ACTION, ref=serial, msg=message)
            raise InvalidAsserterCert(message)
        verified = bool(original(*args, **kwargs))
        with self._lock:
            self._last_serial[name] = serial
        return verified

    def _heartbeat(
        self, original: Any, manager: ClientManager, token: str, client_name: str, client_fqcn: str, fl_ctx: FLContext
    ) -> Any:
        revoked = self.serials()
        with self._lock:
            serial = self._last_serial.get(client_name)
        if client_name in revoked.values() and (serial is None or serial in revoked):
            manager.remove_client(token)
            message = f"a certificate of {client_name} is revoked, and it has shown no valid one since"
            self.logger.error(f"fedfms: heartbeat rejected: {message}")
            fl_ctx.set_prop(FLContextKey.UNAUTHENTICATED, message, sticky=False)
            return False
        return original(token, client_name, client_fqcn, fl_ctx)
