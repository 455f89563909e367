"""Checks of the machine: the installed package, disk space, and memory of the card and the host."""

import hashlib
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

import fedfms
from fedfms.files import nearest
from fedfms.flare.kit import fingerprint
from fedfms.flare.preflight.context import Context, Finding, capacity, fail, ok
from fedfms.machine import free_memory, version_of
from fedfms.training.build import build_on_meta
from fedfms.training.prefix import PrefixCache

_CODE = (".py", ".json", ".csv", ".jinja")  # what the package runs and reads; an installer may omit other files
_RUN_BYTES = 200e6  # of a run without its states: logs, overlays, the job
_STATES = 3  # two are stored while a third is written
_COPIES = 3  # of received and sent tensors in a site's process: 372 MB were measured to take 1.2 GB
_FREE_DISK = "free disk space, or set another folder as cache in local/fedfms_site.yaml"
_CARD_BYTES = 700e6  # of the driver and its libraries on a card
_LESS_MEMORY = "or gradient_checkpointing: true, micro_batch: 1"


def package_fingerprint(folder: Path) -> str:
    """Fingerprint of a package's files, the same wherever that version is installed; a checkout links some folders."""
    found = [Path(top, name) for top, _, names in os.walk(folder, followlinks=True) for name in names]
    paths = sorted(path.relative_to(folder).as_posix() for path in found if path.suffix in _CODE)
    lines = [f"{hashlib.sha256((folder / path).read_bytes()).hexdigest()}  {path}\n" for path in paths]
    return fingerprint("".join(lines).encode())


def package(_: Context) -> Finding:
    """Version and fingerprint of this package, to compare with the lead's; its requirements are installed."""
    wrong = []
    for text in metadata.requires("fedfms") or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            version = version_of(need.name)
            if version is None or not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{need.name} {version or 'missing'} (needs {need.specifier})")
    if wrong:
        return fail(
            ", ".join(wrong), "pip install the lead's version of fedfms, in the environment of the kit's `python3`"
        )
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("nvflare", "torch"))
    digits = package_fingerprint(Path(fedfms.__file__).parent)
    return ok(f"fedfms {fedfms.__version__}, fingerprint {digits}; {versions}, Python {platform.python_version()}")


def disk(context: Context) -> Finding:
    """Free disk space for runs and for cached features, against the estimated need."""
    run, cache = _RUN_BYTES, 0.0
    if context.job is not None:
        run += _state_bytes(context)
        cache = _cache_bytes(context)
    cache_folder = nearest(context.settings.cache or context.kit)
    if cache_folder.stat().st_dev == context.kit.stat().st_dev:
        run, cache = run + cache, 0.0
    free, cache_free = shutil.disk_usage(context.kit).free, shutil.disk_usage(cache_folder).free
    seen = f"kit: {_gb(run)} needed, {_gb(free)} free"
    if not cache:
        return capacity(seen, run, free, _FREE_DISK)
    tightest = min((run, free), (cache, cache_free), key=lambda pair: pair[1] / pair[0])
    return capacity(f"{seen}; cache: {_gb(cache)} needed, {_gb(cache_free)} free", *tightest, _FREE_DISK)


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.1f} GB"


def _state_bytes(context: Context) -> float:
    """Size of a site's saved states: tensors, two optimizer values each, error-feedback residuals, a personal model."""
    traffic = context.traffic
    residuals = 0 if context.study.federation.compression == "none" else 2 * traffic.shared
    return 4 * (_STATES * (3 * traffic.trained + residuals) + traffic.trained)


def _cache_bytes(context: Context) -> float:
    """Size of a frozen prefix's outputs, one for each slice that is not augmented."""
    study, built = context.study, build_on_meta(context.study)
    if not (study.data.cache and PrefixCache.applies(built)):
        return 0.0
    image = torch.empty(1, 3, built.model.input_px, built.model.input_px, device="meta")
    return 4.0 * built.model.prefix(image).numel() * len(context.slices())


def card(context: Context) -> Finding:
    """Free memory of the card, against the estimate for a step."""
    device = context.settings.torch_device
    if device.type != "cuda":
        return ok(f"not used: device {device}")
    need = _CARD_BYTES + context.step_bytes
    free, total = torch.cuda.mem_get_info(device)
    seen = f"{_gb(need)} estimated, {_gb(free)} of {_gb(total)} free"
    return capacity(seen, need, free, f"stop other programs on the card; {_LESS_MEMORY}")


def memory(context: Context) -> Finding:
    """Free host memory, against the estimate: this process, messages, decoded images; without a card also a step."""
    slices = context.slices() if context.study.data.cache else []
    images = sum(one.width_px * one.height_px * (one.channels + 1) for one in slices)
    need = psutil.Process().memory_info().rss + images + _COPIES * 4.0 * context.traffic.shared
    if context.settings.torch_device.type == "cpu":
        need += context.step_bytes
    free = free_memory()
    seen = f"{_gb(need)} estimated, {_gb(images)} of it images, {_gb(free)} free"
    return capacity(seen, need, free, f"stop other programs; {_LESS_MEMORY}")
