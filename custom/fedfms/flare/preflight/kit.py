"""Checks of the kit: the site's own settings, its files and rights, its certificates."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedfms.errors import ProvisioningError
from fedfms.files import nearest
from fedfms.flare.kit import LIST, SOON, certificate, changes, code, days_left
from fedfms.flare.preflight.context import Context, Finding, fail, ok, warn
from fedfms.settings import ENV, FILE_NAME

_SHOWN = 3
_NEW_KIT = "ask the lead for a new kit"


def settings(context: Context) -> Finding:
    """The site's settings load, and the folders that they name are there."""
    found = context.settings
    for key in ("data_root", "checkpoints"):
        folder = getattr(found, key)
        if folder is not None and not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)):
            return fail(f"{key} is no folder that this user reads", f"mount it, or correct {key} in local/{FILE_NAME}")
    cache = nearest(found.cache or context.kit)
    if not (cache.is_dir() and os.access(cache, os.W_OK | os.X_OK)):
        return fail("cache is no folder that this user writes", f"correct cache in local/{FILE_NAME}")
    here = context.kit / "local" / FILE_NAME
    if not os.environ.get(ENV) and not here.is_file():
        return warn(f"there is no local/{FILE_NAME}: every setting is the default", "write data_root and checkpoints")
    own = ", ".join(key for key in ("data_root", "checkpoints", "cache") if getattr(found, key) is not None)
    where = f"of the file that {ENV} names" if os.environ.get(ENV) else f"local/{FILE_NAME}"
    return ok(f"{where}: device {found.torch_device}; set: {own or 'no folder'}")


def files(context: Context) -> Finding:
    """`startup/` is as it was sealed, and nobody else reads the kit."""
    kit = context.kit
    startup, local = changes(kit)
    if startup:
        return fail(
            f"changed since it was sealed: {_some(startup)}", "do not start; open the sealed kit again, or ask the lead"
        )
    inside = [path for part in ("startup", "local") for path in (kit / part, *(kit / part).rglob("*"))]
    open_ = [path for path in (kit, kit / LIST, *inside) if not path.is_symlink() and path.stat().st_mode & 0o077]
    if open_:
        names = _some([path.relative_to(kit).as_posix() for path in open_])
        return fail(f"others than the owner may read {names}", "chmod -R go-rwx on the kit's folder")
    own = f"; the site's own: {_some(local)}" if local else ""
    return ok(f"as sealed, code {code(kit)}{own}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def certificates(context: Context) -> Finding:
    """The site's certificate is the root's, fits its key and name, and does not end soon; nor does the root."""
    own, root, now = certificate(context.kit), _root(context.kit), datetime.now(timezone.utc)
    try:
        own.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return fail("the certificate is not signed by the kit's root", _NEW_KIT)
    if own.public_key() != _key(context.kit).public_key():
        return fail("the private key is not the certificate's", _NEW_KIT)
    named = context.client.get("client", {}).get("fqsn")
    if context.site != named:
        return fail(f"the certificate is of {context.site}, fed_client.json of {named}", _NEW_KIT)
    early = max(own.not_valid_before_utc, root.not_valid_before_utc)
    if early > now:
        return fail(f"valid only from {early:%Y-%m-%d %H:%M} UTC on", "set this machine's clock; or wait")
    left = {name: days_left(one.not_valid_after_utc, now) for name, one in (("certificate", own), ("root", root))}
    seen = f"{context.site}: " + ", ".join(f"{name} {days} days left" for name, days in left.items())
    if min(left.values()) < 0:
        return fail(f"expired; {seen}", "the lead renews it: `python -m provisioning renew`")
    if min(left.values()) < SOON:
        return warn(seen, "ask the lead to renew it before it ends: `python -m provisioning renew`")
    return ok(seen)


def _root(kit: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate((kit / "startup" / "rootCA.pem").read_bytes())
    except (OSError, ValueError):
        raise ProvisioningError("the root's certificate is missing or damaged", do=_NEW_KIT) from None


def _key(kit: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key((kit / "startup" / "client.key").read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise ProvisioningError("the private key is missing or damaged", do=_NEW_KIT) from None
