"""The server's list of certificates that are no longer taken: NVFLARE has no revocation of its own.

Sites that register and admins that log in both show their certificate to `IdentityVerifier.verify_common_name`: the one
place in NVFLARE 2.9 where the server sees a serial number. This component, which the server's `local/resources.json`
names, adds the list to it. A site that is in already is known by a token, which outlives even a restart of the server;
so its heartbeats are refused too, until it has shown a certificate that is not on the list.

The list is read anew whenever it is asked: what is added counts at once, without a restart.
"""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.utils.identity_utils import IdentityVerifier, InvalidAsserterCert, get_cn_from_cert

ACTION = "fedfms.certificate_blocked"  # in the server's audit.log


def wrap(owner: type, name: str, around: Any) -> None:
    """Put `around(original, self, ...)` in the place of a method of NVFLARE's; a second one takes the first one's."""
    original = getattr(owner, name)
    original = getattr(original, "__wrapped__", original)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(functools.partial(original, self), self, *args, **kwargs)

    setattr(owner, name, wrapped)


class RevokedCertificates(FLComponent):
    """Refuses certificates by their serial number.

    Args:
        file: JSON, a name by serial (hexadecimal): `{"serials": {"3f0c...": "site-2"}}`; absolute.

    Raises:
        ValueError: the file cannot be read: the server must not start without it.
        AttributeError: NVFLARE has changed the place where it checks certificates.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file)
        self._lock = threading.Lock()
        self._shown: dict[str, str] = {}  # since the server started: the serial that a name has shown last
        self.serials()
        wrap(IdentityVerifier, "verify_common_name", self._verified)
        wrap(ClientManager, "heartbeat", self._heartbeat)

    def serials(self) -> dict[str, str]:
        """Whose certificates are blocked, by serial.

        Raises:
            ValueError: the list cannot be read: then nobody is let in.
        """
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))["serials"]
            return {str(serial).lower(): str(name) for serial, name in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("the list of blocked certificates cannot be read") from None

    def _verified(self, original: Any, _: Any, *args: Any, **kwargs: Any) -> bool:
        certificate = kwargs.get("asserter_cert") or next(one for one in args if hasattr(one, "serial_number"))
        serial, name = format(certificate.serial_number, "x"), str(get_cn_from_cert(certificate))
        if serial in self.serials():
            told = f"the certificate {serial} of {name} is blocked"
            self.logger.error(f"fedfms: {told}")
            AuditService.add_event(user=name, action=ACTION, ref=serial, msg=told)
            raise InvalidAsserterCert(told)
        verified = bool(original(*args, **kwargs))
        with self._lock:
            self._shown[name] = serial
        return verified

    def _heartbeat(
        self, original: Any, manager: ClientManager, token: str, client_name: str, client_fqcn: str, fl_ctx: FLContext
    ) -> Any:
        blocked = self.serials()
        with self._lock:
            shown = self._shown.get(client_name)
        if client_name in blocked.values() and (shown is None or shown in blocked):
            manager.remove_client(token)
            told = f"a certificate of {client_name} is blocked, and it has shown no other since"
            self.logger.error(f"fedfms: heartbeat refused: {told}")
            fl_ctx.set_prop(FLContextKey.UNAUTHENTICATED, told, sticky=False)
            return False
        return original(token, client_name, client_fqcn, fl_ctx)
