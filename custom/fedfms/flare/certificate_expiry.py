"""Log when a kit's certificate has expired or will soon, which NVFLARE 2.9 does not do.

A server rejects an expired certificate during the TLS handshake, and neither side logs it: the site retries for ever.
`local/resources.json` of a server and of a site names this component. NVFLARE makes it before the first connection
and before it opens its log files, so its messages appear on the process's standard error (systemd's journal).
"""

from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from nvflare.apis.fl_component import FLComponent

from fedfms.flare.kit import RENEWAL_DAYS, days_left


class CertificateExpiryCheck(FLComponent):
    """Logs an error if the kit's certificate has expired, and a warning if it expires within `RENEWAL_DAYS`.

    Args:
        file: the PEM file of the certificate; a relative path starts at the kit's folder, NVFLARE's working directory.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        try:
            expires = x509.load_pem_x509_certificate(Path(file).read_bytes()).not_valid_after_utc
        except (OSError, ValueError):
            self.logger.warning("fedfms: the kit's certificate cannot be read; correct its path in resources.json")
            return
        days = days_left(expires, datetime.now(timezone.utc))
        do = "ask the lead for a new kit"
        if days < 0:
            self.logger.error(f"fedfms: this kit's certificate expired on {expires:%Y-%m-%d}; {do}")
        elif days < RENEWAL_DAYS:
            self.logger.warning(f"fedfms: this kit's certificate expires on {expires:%Y-%m-%d}, in {days} days; {do}")
