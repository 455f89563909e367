"""One request to a federation's server with a kit's certificate: what answers, who it is, and what time it has.

NVFLARE's `http` scheme is HTTP over mutual TLS: a page that is not there is answered with the server's date, and not
logged. Of another scheme only the handshake is seen.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path

from fedfms.errors import ProvisioningError

_UNTRUSTED = (2, 7, 18, 19, 20, 21)  # X509_V_ERR_* of a chain that does not end at the given root
_EARLY, _EXPIRED, _OTHER_NAME = 9, 10, (62, 64)
_ALERT_S = 2.0  # after the handshake of TLS 1.3 a server still may refuse a certificate


@dataclass(frozen=True)
class Answer:
    """`until`: when the server's certificate ends; `skew_s`: its clock minus this machine's, to a second and half of
    `trip_s`; None where it tells no time.
    """

    version: str
    until: datetime
    trip_s: float
    skew_s: float | None


def ask(startup: Path, host: str, port: int, scheme: str, timeout_s: float) -> Answer:
    """Connect as the kit's client does, and see that the name on the server's certificate is the one connected to.

    Raises:
        ProvisioningError: no connection, no TLS, a certificate that is not to be trusted, or ours is not.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(startup / "rootCA.pem")
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    except (OSError, ValueError):
        raise ProvisioningError("the kit's certificate, key and root do not load", do="ask for a new kit") from None
    if scheme == "grpc":
        context.set_alpn_protocols(["h2"])
    with closing(http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)) as connection:
        _connect(connection)
        try:
            return _answer(connection, scheme)
        except (OSError, http.client.HTTPException) as error:
            raise _refused(getattr(error, "reason", None) or type(error).__name__) from None


def _connect(connection: http.client.HTTPSConnection) -> None:
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        raise _distrust(error) from None
    except ssl.SSLError as error:
        raise _no_tls(error) from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ProvisioningError(f"no connection ({why})", do="see the row of the port") from None


def _answer(connection: http.client.HTTPSConnection, scheme: str) -> Answer:
    sock = connection.sock
    seen = sock.getpeercert() or {}
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(seen["notAfter"])), timezone.utc)
    version, began, skew_s = str(sock.version()), time.time(), None
    if scheme in ("http", "https"):
        connection.request("GET", "/", headers={"Connection": "close"})
        told = connection.getresponse().getheader("Date")
        if told:
            skew_s = _moment(told) - (began + time.time()) / 2
    else:
        sock.settimeout(_ALERT_S)
        with suppress(TimeoutError):  # it waits for us to speak: it has taken the certificate
            sock.recv(1)
    return Answer(version, until, time.time() - began, skew_s)


def _moment(date: str) -> float:
    """Seconds since 1970 of an HTTP date, in the middle of the second that it names.

    Raises:
        HTTPException: it is none.
    """
    try:
        return parsedate_to_datetime(date).timestamp() + 0.5
    except ValueError:
        raise http.client.HTTPException from None


def _distrust(error: ssl.SSLCertVerificationError) -> ProvisioningError:
    number = error.verify_code
    if number in _UNTRUSTED:
        return ProvisioningError(
            "what answers is not of this federation: its certificate does not come from the kit's root",
            do="let nothing open TLS on the way (proxy, firewall); or the kit is of another federation: ask the lead",
        )
    if number in _OTHER_NAME:
        return ProvisioningError(
            "what answers has a certificate of this federation with another name than the server's",
            do="do not start; ask the lead for the server's address",
        )
    if number == _EXPIRED:
        return ProvisioningError("the server's certificate has expired", do="the lead renews it; check the clock here")
    if number == _EARLY:
        return ProvisioningError("the server's certificate is not valid yet", do="set this machine's clock")
    return ProvisioningError(f"the server's certificate: {error.verify_message}", do="tell the lead")


def _refused(reason: str) -> ProvisioningError:
    told = f"the server ends the connection, as one does that refuses this kit's certificate ({reason})"
    return ProvisioningError(told, do="see the row of the certificate; ask the lead")


def _no_tls(error: ssl.SSLError) -> ProvisioningError:
    reason = error.reason or type(error).__name__
    if "ALERT" in reason:
        return _refused(reason)
    return ProvisioningError(
        f"what answers speaks no TLS ({reason})", do="let TLS through to the server, unopened; check port and proxy"
    )


def trip_s(host: str, port: int, timeout_s: float) -> float:
    """Seconds until a TCP connection stands: about one way there and back.

    Raises:
        OSError: there is none.
    """
    began = time.monotonic()
    with socket.create_connection((host, port), timeout_s):
        return time.monotonic() - began
