"""A kit tells that its certificate has ended: NVFLARE 2.9 does not.

A server refuses such a certificate while the connection is made, and neither side logs a word: the site tries for ever.
This component, which `local/resources.json` of a server and of a site names, is made before the first connection,
and before NVFLARE opens its log files: what it tells is on the process's error output, which systemd keeps.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from nvflare.apis.fl_component import FLComponent

from fedfms.flare.kit import SOON, days_left


class CertificateEnds(FLComponent):
    """Logs an error if the kit's certificate has ended, and a warning if it is about to.

    Args:
        file: the certificate, PEM; absolute, or as of the kit's folder: NVFLARE works in it before it makes this.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        try:
            until = x509.load_pem_x509_certificate(Path(file).read_bytes()).not_valid_after_utc
        except (OSError, ValueError):
            self.logger.warning("fedfms: the kit's certificate cannot be read; correct its place in resources.json")
            return
        days = days_left(until, datetime.now(timezone.utc))
        if days < 0:
            self.logger.error(
                f"fedfms: this kit's certificate ended on {until:%Y-%m-%d}: it is refused; ask the lead for a new kit"
            )
        elif days < SOON:
            self.logger.warning(
                f"fedfms: this kit's certificate ends on {until:%Y-%m-%d}, in {days} days; ask the lead for a new kit"
            )
