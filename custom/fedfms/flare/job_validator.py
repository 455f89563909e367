"""Checks that a site or server runs on a job before it accepts it. `local/resources.json` names this validator.

NVFLARE does not limit the size of a job. It also replaces `{$NAME}` in a job's configuration by a variable of the
site's environment; a secret could then leave in the site's next error message. Jobs of this package hold JSON without
braces.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator

from fedfms.units import size_text

MAX_FILES = 200
_SIGNED = (".__nvfl_sig.json", ".__nvfl_submitter.crt")  # NVFLARE adds them to each folder of a submitted job


class JobValidator(AppValidator):
    """Rejects an app that is too large, holds links, or has variables of the environment in its configuration.

    Args:
        max_mb: maximum size of all files together (1e6 bytes).
    """

    def __init__(self, max_mb: float) -> None:
        self._max_mb = max_mb

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """The rejection reason, empty if the app is accepted, and NVFLARE's (unused) dict of properties."""
        paths = list(Path(app_folder).rglob("*"))
        size = sum(path.lstat().st_size for path in paths if not path.is_dir())
        if any(path.is_symlink() for path in paths):
            return "the job holds links; replace them by the files", {}
        if len(paths) > MAX_FILES:
            return f"the job holds {len(paths)} files (at most {MAX_FILES})", {}
        if size > self._max_mb * 1e6:
            return f"the job holds {size_text(size)} (at most {size_text(1e6 * self._max_mb)})", {}
        return _check_configuration([path for path in paths if _is_configuration(path, app_folder)]), {}


def _is_configuration(path: Path, app_folder: str) -> bool:
    """NVFLARE reads configuration from `config/` and all folders below it."""
    *folders, name = path.relative_to(app_folder).parts
    inside = "config" in folders and "custom" not in folders[: folders.index("config")]
    return inside and name not in _SIGNED and path.is_file()


def _check_configuration(files: list[Path]) -> str:
    if any(path.suffix != ".json" for path in files):
        return "the job's configuration has files that are not JSON"
    try:
        # `json`, as in NVFLARE: another parser could read the same text differently.
        texts = [text for path in files for text in _texts(json.loads(path.read_text(encoding="utf-8")))]
    except (OSError, ValueError, RecursionError):
        return "the job's configuration is not valid JSON"
    if any("{" in text for text in texts):
        return "the job's configuration has a variable in braces, which NVFLARE fills from the site's environment"
    return ""


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, including keys."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value
