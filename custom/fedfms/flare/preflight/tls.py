"""Send one request to the federation's server with a kit's certificate, and report the server's certificate and time.

NVFLARE's `http` scheme is HTTP over mutual TLS: the server answers a request for an unknown page with its date and does
not log it. With any other scheme only the handshake is checked.
"""

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

_OTHER_ROOT = "let no proxy or firewall intercept TLS; or the kit belongs to another federation: ask the lead"
_OTHER_NAME = "do not start; ask the lead for the server's address"
_UNTRUSTED = {  # X509_V_ERR_*
    **dict.fromkeys((2, 7, 18, 19, 20, 21), ("is not signed by the kit's root", _OTHER_ROOT)),
    **dict.fromkeys((62, 64), ("is signed by the kit's root, but for another name than the server's", _OTHER_NAME)),
    9: ("is not valid yet", "set this machine's clock"),
    10: ("has expired", "the lead renews it; check the clock here"),
}
_ALERT_S = 2.0  # in TLS 1.3 a server can reject a certificate after the handshake


@dataclass(frozen=True)
class ServerAnswer:
    """The TLS version and expiry of the server's certificate, round-trip time, and clock offset.

    Attributes:
        clock_offset_s: the server's clock minus this one's, to within a second plus half of `round_trip_s`; None if the
            server reports no time.
    """

    tls_version: str
    expires: datetime
    round_trip_s: float
    clock_offset_s: float | None


def probe(startup: Path, host: str, port: int, scheme: str, timeout_s: float) -> ServerAnswer:
    """Connect as the kit's client does, and check that the server's certificate is for the host connected to.

    Raises:
        ProvisioningError: no connection, no TLS, an untrusted certificate, or the server rejects this kit's.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(startup / "rootCA.pem")
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    except (OSError, ValueError):
        what = "the kit's certificate, key or root certificate cannot be loaded"
        raise ProvisioningError(what, do="ask for a new kit") from None
    if scheme == "grpc":
        context.set_alpn_protocols(["h2"])
    with closing(http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)) as connection:
        _connect(connection)
        try:
            return _answer(connection, scheme)
        except (OSError, http.client.HTTPException) as error:
            raise _rejected(getattr(error, "reason", None) or type(error).__name__) from None


def _connect(connection: http.client.HTTPSConnection) -> None:
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        what, do = _UNTRUSTED.get(error.verify_code, (error.verify_message, "contact the lead"))
        raise ProvisioningError(f"the server's certificate {what}", do=do) from None
    except ssl.SSLError as error:
        reason = error.reason or type(error).__name__
        if "ALERT" in reason:
            raise _rejected(reason) from None
        do = "let TLS pass to the server without interception; check port and proxy"
        raise ProvisioningError(f"the peer does not speak TLS ({reason})", do=do) from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ProvisioningError(f"no connection ({why})", do="see the row of the port") from None


def _answer(connection: http.client.HTTPSConnection, scheme: str) -> ServerAnswer:
    sock = connection.sock
    peer = sock.getpeercert() or {}
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(peer["notAfter"])), timezone.utc)
    version, start, offset_s = str(sock.version()), time.time(), None
    if scheme in ("http", "https"):
        connection.request("GET", "/", headers={"Connection": "close"})
        date = connection.getresponse().getheader("Date")
        if date:
            offset_s = _timestamp(date) - (start + time.time()) / 2
    else:
        sock.settimeout(_ALERT_S)
        with suppress(TimeoutError):  # the server waits for data: it has accepted the certificate
            sock.recv(1)
    return ServerAnswer(version, expires, time.time() - start, offset_s)


def _timestamp(date: str) -> float:
    """Seconds since 1970 of an HTTP date, at the middle of its second."""
    try:
        return parsedate_to_datetime(date).timestamp() + 0.5
    except ValueError:
        raise http.client.HTTPException from None


def _rejected(reason: str) -> ProvisioningError:
    what = f"the server closed the connection; it probably rejects this kit's certificate ({reason})"
    return ProvisioningError(what, do="see the row of the certificate; ask the lead")


def round_trip_s(host: str, port: int, timeout_s: float) -> float:
    """Seconds to open a TCP connection, about one round trip."""
    start = time.monotonic()
    with socket.create_connection((host, port), timeout_s):
        return time.monotonic() - start
