"""What a site or server takes as a job. Named by `local/resources.json`.

NVFLARE has no limit on a job's size; and it fills `{$NAME}` in a job's configuration with the site's environment, whose
secrets would be in the next error that the site tells. Our jobs hold no such thing, and are JSON alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator

from fedfms.units import size_text

MAX_FILES = 200
_SIGNED = (".__nvfl_sig.json", ".__nvfl_submitter.crt")  # NVFLARE's own, in every folder of a job that was submitted


class JobValidator(AppValidator):
    """Refuses an app that is larger than a configuration can be, holds links, or is filled in from where it runs.

    Args:
        max_mb: of all files together (1e6 bytes).
    """

    def __init__(self, max_mb: float) -> None:
        self._max_mb = max_mb

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """NVFLARE's form of an answer: a reason, empty where the app is taken."""
        paths = list(Path(app_folder).rglob("*"))
        size = sum(path.lstat().st_size for path in paths if not path.is_dir())
        if any(path.is_symlink() for path in paths):
            return "the job holds links; put the files themselves in", {}
        if len(paths) > MAX_FILES:
            return f"the job holds {len(paths)} files (at most {MAX_FILES})", {}
        if size > self._max_mb * 1e6:
            return f"the job holds {size_text(size)} (at most {size_text(1e6 * self._max_mb)})", {}
        return _configuration([path for path in paths if path.is_file() and _is_configuration(path, app_folder)]), {}


def _is_configuration(path: Path, app_folder: str) -> bool:
    """NVFLARE looks for it in `config/` and all folders in that."""
    *folders, name = path.relative_to(app_folder).parts
    return name not in _SIGNED and "config" in folders and "custom" not in folders[: folders.index("config")]


def _configuration(files: list[Path]) -> str:
    """A reason not to take a job's configuration; empty if there is none."""
    if any(path.suffix != ".json" for path in files):
        return "the job's configuration is not JSON alone"
    try:
        texts = [text for path in files for text in _texts(json.loads(path.read_text(encoding="utf-8")))]
    except (OSError, ValueError, RecursionError):
        return "the job's configuration is not JSON"
    if any("{" in text for text in texts):
        return "the job's configuration has a variable in braces, which the site's environment would fill"
    return ""


def _texts(value: Any) -> Iterator[str]:
    """All texts in JSON, keys too."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value
