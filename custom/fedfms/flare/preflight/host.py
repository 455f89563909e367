"""Checks of the machine: the installed package, and room for the study on disk, card and in memory."""

from __future__ import annotations

import hashlib
import platform
import shutil
from importlib import metadata
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

import fedfms
from fedfms.files import nearest
from fedfms.flare.kit import spoken
from fedfms.flare.preflight.context import Context, Finding, fail, ok, room
from fedfms.machine import free_memory, version_of
from fedfms.training.build import build_on_meta
from fedfms.training.prefix import PrefixCache

_CODE = (".py", ".json", ".csv", ".jinja")  # what the package runs and reads; an installer may leave out other files
_RUN_BYTES = 200e6  # of a run beside its states: logs, overlays, the job
_STATES = 3  # two are kept, and one is being written
_COPIES = 3  # of what is received and sent, in a site's process: 372 MB were seen to take 1.2 GB
_NO_ROOM = "make room, or name another folder as cache in local/fedfms_site.yaml"
_CARD_BYTES = 700e6  # of the driver and its libraries on a card


def package_code(folder: Path) -> str:
    """24 digits, in six groups, of the files of a package: alike wherever the same version is installed."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in _CODE)
    lines = [f"{hashlib.sha256((folder / path).read_bytes()).hexdigest()}  {path}\n" for path in paths]
    return spoken("".join(lines).encode())


def package(_: Context) -> Finding:
    """Version and code of this package, to compare with the lead's; what it needs is there, in versions it takes."""
    wrong = []
    for text in metadata.requires("fedfms") or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            version = version_of(need.name)
            if version is None or not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{need.name} {version or 'missing'} (needs {need.specifier})")
    if wrong:
        return fail(", ".join(wrong), "pip install -r requirements.txt, in the environment of the kit's `python3`")
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("nvflare", "torch"))
    code = package_code(Path(fedfms.__file__).parent)
    return ok(f"fedfms {fedfms.__version__}, code {code}; {versions}, Python {platform.python_version()}")


def disk(context: Context) -> Finding:
    """Free space where runs are kept and where features are cached, against what the study is estimated to need."""
    run, cache = _RUN_BYTES, 0.0
    if context.job is not None:
        run += _state_bytes(context)
        cache = _cache_bytes(context)
    place = nearest(context.settings.cache or context.kit)
    if place.stat().st_dev == context.kit.stat().st_dev:
        run, cache = run + cache, 0.0
    free, beside = shutil.disk_usage(context.kit).free, shutil.disk_usage(place).free
    seen = f"kit: {_gb(run)} needed, {_gb(free)} free"
    if not cache:
        return room(seen, run, free, _NO_ROOM)
    tightest = min((run, free), (cache, beside), key=lambda pair: pair[1] / pair[0])
    return room(f"{seen}; cache: {_gb(cache)} needed, {_gb(beside)} free", *tightest, _NO_ROOM)


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.1f} GB"


def _state_bytes(context: Context) -> float:
    """Of a site's saved states: tensors, the optimizer's two numbers for each, what a wire's differences need."""
    traffic = context.traffic
    wire = 0 if context.study.federation.compression == "none" else 2 * traffic.shared
    return 4 * (_STATES * (3 * traffic.trained + wire) + traffic.trained)  # and a model of the site's own


def _cache_bytes(context: Context) -> float:
    """Of a frozen prefix's outputs, one for each slice that is not augmented."""
    study, built = context.study, build_on_meta(context.study)
    if not (study.data.cache and PrefixCache.applies(built)):
        return 0.0
    image = torch.empty(1, 3, built.model.input_px, built.model.input_px, device="meta")
    return 4.0 * built.model.prefix(image).numel() * len(context.slices())


def card(context: Context) -> Finding:
    """Free memory of the card against the estimate of a step."""
    device = context.settings.torch_device
    if device.type != "cuda":
        return ok(f"none is used: device {device}")
    need = _CARD_BYTES + context.step_bytes
    free, total = torch.cuda.mem_get_info(device)
    seen = f"{_gb(need)} estimated, {_gb(free)} of {_gb(total)} free"
    return room(seen, need, free, "end what else uses the card; or checkpointing: true, micro_batch: 1")


def memory(context: Context) -> Finding:
    """Free memory against the estimate: this process as it is, tensors on their way, decoded images; a step, without a
    card."""
    slices = context.slices() if context.study.data.cache else []
    images = sum(one.width_px * one.height_px * (one.channels + 1) for one in slices)
    need = psutil.Process().memory_info().rss + images + _COPIES * 4.0 * context.traffic.shared
    if context.settings.torch_device.type == "cpu":
        need += context.step_bytes
    free = free_memory()
    seen = f"{_gb(need)} estimated, {_gb(images)} of it images, {_gb(free)} free"
    return room(seen, need, free, "end other programs; or checkpointing: true, micro_batch: 1")
