"""Ways to serve a converted site's samples with the same transforms: ours, ours with workers, MONAI's two caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Compose, Transform
from torch.utils.data import DataLoader

from fedfms.data import Item, SiteData
from fedfms.data.transforms import make_transforms

_WORKERS = 2
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Way:
    """An epoch's samples, one by one; the MB that the way keeps once all have been seen, and where."""

    epoch: Callable[[], Iterator[Any]]
    kept_mb: Callable[[], float]
    kept_in: str


def _plain(opened: SiteData, size_px: int, mask_px: int, _: Path) -> Way:
    def epoch() -> Iterator[Any]:
        return _each(opened.dataset("all", input_px=size_px, mask_px=mask_px))  # decodes all, the first time

    return Way(epoch, lambda: _decoded_mb(opened), "memory")


def _workers(opened: SiteData, size_px: int, mask_px: int, _: Path) -> Way:
    def epoch() -> Iterator[Any]:
        dataset = opened.dataset("all", input_px=size_px, mask_px=mask_px)
        return iter(DataLoader(dataset, batch_size=None, num_workers=_WORKERS))

    return Way(epoch, lambda: _decoded_mb(opened), "memory")


def _cached(opened: SiteData, size_px: int, mask_px: int, _: Path) -> Way:
    """MONAI's CacheDataset: samples as they leave the transforms, none of which is random here."""

    @cache
    def dataset() -> Any:
        numbers, transforms = _numbers(opened), _transforms(opened, size_px, mask_px)
        return CacheDataset(numbers, transforms, num_workers=1, progress=False)

    masks = len(opened.spec.structures) * mask_px**2
    mb = len(opened.parts["all"]) * (3 * size_px**2 + masks) * _FLOAT_BYTES / 1e6
    return Way(lambda: _each(dataset()), lambda: mb, "memory")


def _persistent(opened: SiteData, size_px: int, mask_px: int, scratch: Path) -> Way:
    """MONAI's PersistentDataset: the same on the disk."""
    folder = scratch / "persistent"

    @cache
    def dataset() -> Any:
        return PersistentDataset(_numbers(opened), _transforms(opened, size_px, mask_px), cache_dir=folder)

    return Way(lambda: _each(dataset()), lambda: sum(p.stat().st_size for p in folder.iterdir()) / 1e6, "disk")


Open = Callable[[SiteData, int, int, Path], Way]  # a site, px of input and of masks, a folder to write in
WAYS: Mapping[str, Open] = {
    "fedfms": _plain,
    f"fedfms, {_WORKERS} workers": _workers,
    "MONAI CacheDataset": _cached,
    "MONAI PersistentDataset": _persistent,
}


class _Decode(Transform):
    """{"number": n} -> the uint8 tensors of that slice, as `fedfms.data.transforms` takes them."""

    def __init__(self, opened: SiteData, items: tuple[Item, ...]) -> None:
        self._source, self._items = opened.source, items

    def __call__(self, data: Mapping[str, int]) -> dict[str, torch.Tensor]:
        image, label = self._source.read(self._items[data["number"]])
        channels_first = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        return {"image": torch.from_numpy(channels_first), "label": torch.from_numpy(label[None])}


def _numbers(opened: SiteData) -> list[dict[str, int]]:
    return [{"number": number} for number in range(len(opened.parts["all"]))]


def _transforms(opened: SiteData, size_px: int, mask_px: int) -> Compose:
    ours = make_transforms(opened.spec, input_px=size_px, mask_px=mask_px, augment=False)
    return Compose([_Decode(opened, opened.parts["all"]), *ours.transforms])


def _decoded_mb(opened: SiteData) -> float:
    return sum(item.width_px * item.height_px * (item.channels + 1) for item in opened.parts["all"]) / 1e6


def _each(dataset: Any) -> Iterator[Any]:
    return (dataset[index] for index in range(len(dataset)))
