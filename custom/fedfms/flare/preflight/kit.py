"""Checks of the kit: the site's settings, the kit's files and permissions, and its certificates."""

import os
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedfms.errors import ProvisioningError
from fedfms.files import nearest
from fedfms.flare.kit import LIST_FILE, RENEWAL_DAYS, changed_files, days_left, kit_fingerprint, load_certificate
from fedfms.flare.preflight.context import Context, Finding, fail, ok, warn
from fedfms.settings import ENV, FILE_NAME

_MAX_NAMES = 3
_NEW_KIT = "ask the lead for a new kit"


def settings(context: Context) -> Finding:
    """The site's settings are valid, and their folders exist."""
    found = context.settings
    for key in ("data_root", "checkpoints"):
        folder = getattr(found, key)
        if folder is not None and not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)):
            return fail(f"{key} is not a readable folder", f"mount it, or correct {key} in local/{FILE_NAME}")
    cache = nearest(found.cache or context.kit)
    if not (cache.is_dir() and os.access(cache, os.W_OK | os.X_OK)):
        return fail("cache is not a writable folder", f"correct cache in local/{FILE_NAME}")
    if not os.environ.get(ENV) and not (context.kit / "local" / FILE_NAME).is_file():
        return warn(f"there is no local/{FILE_NAME}: all settings are defaults", "set data_root and checkpoints")
    own = ", ".join(key for key in ("data_root", "checkpoints", "cache") if getattr(found, key) is not None)
    where = f"file named by {ENV}" if os.environ.get(ENV) else f"local/{FILE_NAME}"
    return ok(f"{where}: device {found.torch_device}; set: {own or 'no folder'}")


def files(context: Context) -> Finding:
    """`startup/` is unchanged since the kit was encrypted, and only the owner can read the kit."""
    kit = context.kit
    startup, local = changed_files(kit)
    if startup:
        what = f"changed since the kit was encrypted: {_some(startup)}"
        return fail(what, "do not start; open the encrypted kit again, or ask the lead")
    inside = [path for part in ("startup", "local") for path in (kit / part, *(kit / part).rglob("*"))]
    exposed = [
        path.relative_to(kit).as_posix() for path in (kit, kit / LIST_FILE, *inside)
        if not path.is_symlink() and path.stat().st_mode & 0o077
    ]  # fmt: skip
    if exposed:
        return fail(f"others than the owner can read {_some(exposed)}", "chmod -R go-rwx on the kit's folder")
    own = f"; changed by the site: {_some(local)}" if local else ""
    return ok(f"unchanged, fingerprint {kit_fingerprint(kit)}{own}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def certificates(context: Context) -> Finding:
    """The root has signed the site's certificate, it fits the key and the name, and neither expires soon."""
    own, root, now = load_certificate(context.kit), _root(context.kit), datetime.now(timezone.utc)
    try:
        own.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return fail("the certificate is not signed by the kit's root", _NEW_KIT)
    if own.public_key() != _private_key(context.kit).public_key():
        return fail("the private key does not match the certificate", _NEW_KIT)
    if context.site != context.client.site:
        what = f"the certificate is for {context.site}, but fed_client.json for {context.client.site or 'no site'}"
        return fail(what, _NEW_KIT)
    starts = max(own.not_valid_before_utc, root.not_valid_before_utc)
    if starts > now:
        return fail(f"not valid before {starts:%Y-%m-%d %H:%M} UTC", "set this machine's clock; or wait")
    left = {name: days_left(one.not_valid_after_utc, now) for name, one in (("certificate", own), ("root", root))}
    seen = f"{context.site}: " + ", ".join(f"{name} {days} days left" for name, days in left.items())
    if min(left.values()) < 0:
        return fail(f"expired; {seen}", "the lead renews it: `fedfms kits renew`")
    if min(left.values()) < RENEWAL_DAYS:
        return warn(seen, "ask the lead to renew it before it expires: `fedfms kits renew`")
    return ok(seen)


def _root(kit: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate((kit / "startup" / "rootCA.pem").read_bytes())
    except (OSError, ValueError):
        raise ProvisioningError("the root certificate is missing or damaged", do=_NEW_KIT) from None


def _private_key(kit: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key((kit / "startup" / "client.key").read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise ProvisioningError("the private key is missing or damaged", do=_NEW_KIT) from None
