"""Files and folders that a command line names, with one-line errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedfms.errors import SettingsError, StudyError
from fedfms.files import write_atomic

if TYPE_CHECKING:
    from fedfms.settings import SiteSettings


def write(path: Path, content: str | bytes) -> None:
    """Write a file atomically; its folder is created if missing.

    Raises:
        StudyError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise StudyError(f"cannot write {path.name} ({error.strerror})", do="name another place") from None


def site_settings(root: Path | None, named: Path | None = None, checkpoint: Path | None = None) -> SiteSettings:
    """The settings of this site (`fedfms.settings.load_settings`), with the data root and the folder of the checkpoint
    that are given.

    Raises:
        SettingsError: as `load_settings`; `root` is not a folder.
    """
    from fedfms.settings import load_settings

    if root is not None and not root.is_dir():
        raise SettingsError("--root is not a folder", do="name the --out of `fedfms prepare`")
    settings = load_settings(named=named)
    settings = settings if root is None else replace(settings, data_root=root.resolve())
    return settings if checkpoint is None else replace(settings, checkpoints=checkpoint.resolve().parent)
