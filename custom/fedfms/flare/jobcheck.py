"""What a site or server takes as a job: NVFLARE has no limit on a job's size. Named by `local/resources.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator

MAX_FILES = 200


class SmallJobs(AppValidator):
    """Refuses an app that is larger than a configuration can be, or that holds links.

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
            return f"the job holds {size / 1e6:.1f} MB (at most {self._max_mb:.1f})", {}
        return "", {}
