"""What belongs to a site and never to a job: where its data and weights lie, and what it computes on.

Read from the file named by FEDFMS_SITE, or from `local/fedfms_site.yaml` in the site's FLARE workspace::

    data_root: /data/fedfms        # holds <dataset>/<site>/manifest.json
    checkpoints: /data/checkpoints # holds the files that a study names
    checkpoint_sha256: []          # hashes of the files that a study may start from; empty: of any in that folder
    device: cuda:0                 # default: cuda if there is one, else cpu
    cache: /scratch/fedfms         # default: inside the run's own folder
    workers: 0                     # loader processes
    threads: 0                     # of torch on the CPU; 0: the site's share of the machine's cores
    min_cases: 0                   # no score of fewer images leaves the site; the study's own counts where it is larger
    attention: auto                # plain: by segment-anything's own code, in several times the memory
    processor: auto                # plain: products and memory as torch and the C library come, slower
    checkpointing: false           # true: work each block out again in the backward pass, for less memory
    micro_batch: 0                 # slices worked off at a time, for less memory; 0: a step's batch as a whole
    quiet: false                   # true: no live curves leave the site, whatever the study says

None of attention, processor, checkpointing and micro_batch changes what is computed: sums are added in another order,
no more.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedfms.errors import SettingsError

if TYPE_CHECKING:
    import torch

ENV = "FEDFMS_SITE"
FILE_NAME = "fedfms_site.yaml"
WAYS = ("auto", "plain")
_FOLDERS = ("data_root", "checkpoints", "cache")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class SiteSettings:
    """A site's own settings; every path is absolute or None."""

    data_root: Path | None = None
    checkpoints: Path | None = None
    checkpoint_sha256: tuple[str, ...] = ()  # small hexadecimal digits
    device: str = ""
    cache: Path | None = None
    workers: int = 0
    threads: int = 0
    min_cases: int = 0
    attention: str = "auto"  # one of `WAYS`, as the next
    processor: str = "auto"
    checkpointing: bool = False
    micro_batch: int = 0
    quiet: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, paths as text: what a file of settings holds."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return plain | {"checkpoint_sha256": list(self.checkpoint_sha256)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> SiteSettings:
        """The settings of which `to_dict` made these values."""
        folders = {key: Path(plain[key]) for key in _FOLDERS if plain[key] is not None}
        return cls(**{**plain, **folders, "checkpoint_sha256": tuple(plain["checkpoint_sha256"])})

    @property
    def tuned(self) -> bool:
        """Whether the processor is used as `fedfms.training.cpu_tuning` has it."""
        return self.processor == "auto"

    @property
    def torch_device(self) -> torch.device:
        """The device to compute on; the default is CUDA where there is one."""
        import torch  # here and below: settings are read by commands that compute nothing

        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_settings(workspace: Path | None = None, *, named: Path | None = None) -> SiteSettings:
    """The settings of this site, or the defaults when there is no file.

    Args:
        workspace: root of the site's FLARE workspace, whose `local/` may hold the file.
        named: the file itself, in place of the one that FEDFMS_SITE names.

    Raises:
        SettingsError: the named file is missing, is not YAML, or holds an unknown key, a relative path or a
            device that is not there.
    """
    path = named or Path(os.environ.get(ENV, ""))
    if named or os.environ.get(ENV):
        if not path.is_file():
            says = "--site-settings" if named else ENV
            raise SettingsError(f"{says} names a file that is not there", do="correct it or leave it out")
    elif workspace is not None and (workspace / "local" / FILE_NAME).is_file():
        path = workspace / "local" / FILE_NAME
    else:
        return SiteSettings()
    return _parse(path)


def _parse(path: Path) -> SiteSettings:
    raw = _read(path)
    known = {f.name for f in fields(SiteSettings)}
    unknown = sorted(str(key) for key in set(raw) - known)
    if unknown:
        raise SettingsError(f"{path.name} has unknown settings {unknown}", do=f"known ones: {sorted(known)}")
    for key in _FOLDERS:
        if raw.get(key) is not None:
            raw[key] = _absolute(str(raw[key]), f"{path.name}: {key}")
    for key in ("workers", "threads", "min_cases", "micro_batch"):
        if type(raw.get(key, 0)) is not int or raw.get(key, 0) < 0:
            raise SettingsError(f"{path.name}: {key} must be a number, 0 or more", do="leave it out for the default")
    for key in ("attention", "processor"):
        if raw.get(key, "auto") not in WAYS:
            raise SettingsError(f"{path.name}: there is no such {key}", do=f"one of {list(WAYS)}")
    for key in ("checkpointing", "quiet"):
        if type(raw.get(key, False)) is not bool:
            raise SettingsError(f"{path.name}: {key} must be true or false", do="leave it out for false")
    check_device(str(raw.get("device") or ""), path.name)
    return SiteSettings(
        data_root=raw.get("data_root"),
        checkpoints=raw.get("checkpoints"),
        checkpoint_sha256=_hashes(raw.get("checkpoint_sha256"), path.name),
        device=str(raw.get("device") or ""),
        cache=raw.get("cache"),
        workers=raw.get("workers", 0),
        threads=raw.get("threads", 0),
        min_cases=raw.get("min_cases", 0),
        attention=raw.get("attention", "auto"),
        processor=raw.get("processor", "auto"),
        checkpointing=raw.get("checkpointing", False),
        micro_batch=raw.get("micro_batch", 0),
        quiet=raw.get("quiet", False),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingsError(f"{path.name} cannot be read ({error.strerror})", do="check its permissions") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not valid YAML", do="see the example in README.md") from error
    if not isinstance(raw, dict):
        raise SettingsError(f"{path.name} must be a mapping of settings", do="see the example in README.md")
    return raw


def _hashes(raw: Any, file: str) -> tuple[str, ...]:
    """As small letters. A list that is none must not be taken for an empty one, which accepts every file."""
    found = [] if raw is None else raw
    if not isinstance(found, list) or not all(isinstance(one, str) and _SHA256.fullmatch(one) for one in found):
        raise SettingsError(
            f"{file}: checkpoint_sha256 must be a list of SHA-256 hashes", do="64 hexadecimal digits each, in quotes"
        )
    return tuple(one.lower() for one in found)


def _absolute(text: str, where: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~name of nobody
        path = Path(text)
    if not path.is_absolute():
        raise SettingsError(f"{where} must be an absolute path", do="write it from the root on")
    return path


def check_device(name: str, file: str) -> None:
    """A job must not be what finds out that the card it is to train on is not there.

    Raises:
        SettingsError: `file` names no device of this machine.
    """
    import torch

    try:
        device = torch.device(name or "cpu")
    except RuntimeError:
        raise SettingsError(f"{file}: there is no device {name!r}", do="cpu, cuda or cuda:0") from None
    cards = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise SettingsError(
            f"{file}: device {name!r} is not there: torch sees {cards} CUDA devices", do="write cpu, or leave it out"
        )
