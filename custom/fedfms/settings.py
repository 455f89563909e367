"""A site's own settings, which no job can change: data, weights, device and memory.

They are read from the file named by FEDFMS_SITE, or from `local/fedfms_site.yaml` in the site's FLARE workspace. Its
keys are the fields of `SiteSettings`, all optional::

    data_root: /data/fedfms
    checkpoints: /data/checkpoints
    device: cuda:0
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from fedfms.errors import SettingsError
from fedfms.schema import STRICT, mapping, parse, read_yaml, to_plain

if TYPE_CHECKING:
    import torch

ENV = "FEDFMS_SITE"
FILE_NAME = "fedfms_site.yaml"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def _absolute(value: Any) -> Path | str:
    """An absolute path, `~` expanded. The error does not show the path."""
    path = Path(str(value))
    with suppress(RuntimeError):  # ~name of an unknown user: stays relative
        path = path.expanduser()
    if not path.is_absolute():
        raise PydanticCustomError("absolute_path", "must be an absolute path")
    return path if isinstance(value, Path) else str(path)  # strict JSON accepts text only


def _names(value: Any) -> tuple[str, ...]:
    """One name, or several."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _hashes(value: Any) -> tuple[str, ...]:
    """Lower-case hashes. A value that is not a list must not pass as an empty list, which accepts every file."""
    found = [] if value is None else value
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) and _SHA256.fullmatch(one) for one in found):
        text = "must be a list of SHA-256 hashes, 64 hexadecimal digits each, in quotes"
        raise PydanticCustomError("sha256_list", text)
    return tuple(one.lower() for one in found)


Folder = Annotated[Path, BeforeValidator(_absolute)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class SiteSettings:
    """A site's settings. `attention`, `cpu_tuning`, `gradient_checkpointing` and `micro_batch` only change the order of
    sums.
    """

    data_root: Folder | None = None
    """Holds <dataset>/<site>/manifest.json."""
    checkpoints: Folder | None = None
    """Holds the weight files that a study names."""
    checkpoint_sha256: Annotated[tuple[str, ...], BeforeValidator(_hashes)] = ()
    """Hashes of the weight files that a study may start from; empty: any file of that folder."""
    device: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)] = ""
    """cpu, cuda or cuda:N; empty: cuda where available, else cpu."""
    cache: Folder | None = None
    """For outputs of a frozen encoder; null: in the run's own folder."""
    cache_mb: Count = 20_000
    """Limit of their total size; 0: none."""
    workers: Count = 0
    """Loader processes."""
    threads: Count = 0
    """Torch's CPU threads; 0: the site's share of the cores."""
    min_cases: Count = 0
    """Suppress scores over fewer images; the study's own minimum applies where it is larger."""
    attention: Literal["auto", "plain"] = "auto"
    """plain: segment-anything's own code, in several times the memory."""
    cpu_tuning: bool = True
    """false: torch's and the C library's defaults for products and memory, slower."""
    gradient_checkpointing: bool = False
    """true: recompute blocks in the backward pass, for less memory."""
    micro_batch: Count = 0
    """Slices in a micro-batch, for less memory; 0: the whole batch at once."""
    plugins: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Installed packages whose methods, backbones and data sets a job may use (`fedfms.plugins`)."""
    live_metrics: bool = True
    """false: no live curves leave the site, whatever the study asks for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, paths as text: the content of a settings file."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any], *, where: str = "settings") -> SiteSettings:
        """The inverse of `to_dict`; keys may be missing.

        Raises:
            SettingsError: an unknown key or a wrong value.
        """
        return parse(cls, plain, SettingsError, where=where, do="correct it, or leave it out for the default")

    @property
    def torch_device(self) -> torch.device:
        """The device to compute on; by default CUDA where available."""
        import torch  # here and below: commands that compute nothing also read settings

        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_settings(workspace: Path | None = None, *, named: Path | None = None) -> SiteSettings:
    """The settings of this site, or the defaults if there is no file.

    Args:
        workspace: root of the site's FLARE workspace, whose `local/` may hold the file.
        named: the file itself, in place of the one that FEDFMS_SITE names.

    Raises:
        SettingsError: the named file is missing, is not YAML, or holds an unknown key, a wrong value, a relative path
            or a device that this machine lacks.
    """
    path = named or (Path(os.environ[ENV]) if os.environ.get(ENV) else None)
    if path is not None and not path.is_file():
        option = "--site-settings" if named else ENV
        raise SettingsError(f"{option} names a file that does not exist", do="correct it or leave it out")
    if path is None and workspace is not None and (workspace / "local" / FILE_NAME).is_file():
        path = workspace / "local" / FILE_NAME
    if path is None:
        return SiteSettings()
    do = "see the example in README.md"
    raw = mapping(read_yaml(path, SettingsError, do=do) or {}, SettingsError, what=path.name, do=do)
    settings = SiteSettings.from_dict(raw, where=path.name)
    check_device(settings.device, path.name)
    return settings


def check_device(name: str, where: str) -> None:
    """Check that this machine has a device, before a job tries to train on it.

    Raises:
        SettingsError: torch does not know the device, or sees no such card.
    """
    import torch

    try:
        device = torch.device(name or "cpu")
    except RuntimeError:
        raise SettingsError(f"unknown device {name!r}", where=where, do="cpu, cuda or cuda:0") from None
    cards = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= cards:
        what = f"device {name!r} does not exist: torch sees {cards} CUDA devices"
        raise SettingsError(what, where=where, do="write cpu, or leave it out")
