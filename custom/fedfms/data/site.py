"""A site's data for a study: the slices of each part, and datasets of them."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import Dataset

from fedfms.data import splits
from fedfms.data.damaged import Place, find_damaged
from fedfms.data.manifest import (
    CONVERT,
    Manifest,
    blank_sha256,
    load_manifest,
    make_splits,
    missing_files,
    pixel_sha256,
)
from fedfms.data.phantom import make_phantom
from fedfms.data.source import FolderSource, Item, MemorySource, Source, list_items
from fedfms.data.transforms import VIEW, make_transforms, plain
from fedfms.errors import DataError, SettingsError
from fedfms.rng import rng
from fedfms.settings import SiteSettings
from fedfms.study import PHANTOM, DataSpec, Study

_log = logging.getLogger(__name__)


def _never_stop() -> None:
    """The default of `check_stop`."""


@dataclass(frozen=True)
class SiteData:
    """Slices of a site by part, in an order that depends on pixels alone.

    Parts: train, val, all, and test under the "personal" protocol, where val is the same slices. A held-out site has
    no slices in train and all slices in the others.
    """

    site: str
    parts: Mapping[str, tuple[Item, ...]]
    scored_part: str  # "val", "test" or (held-out site) "all"
    spec: DataSpec
    seed: int
    source: Source
    damaged: frozenset[Place] = frozenset()  # skipped slices, which are in no part

    @property
    def unreadable_images(self) -> int:
        """Number of images that are skipped because they are damaged."""
        return len(self.damaged)

    def whole_cases(self, part: str) -> bool:
        """Whether a part has all slices of each of its cases: none skipped, and no limit by `data.max_images`."""
        incomplete = {case for case, _ in self.damaged}
        return self.spec.max_images is None and not any(item.case in incomplete for item in self.parts[part])

    def counts(self) -> dict[str, int]:
        """Number of slices by part."""
        return {part: len(items) for part, items in self.parts.items()}

    def dataset(
        self, part: str, *, input_px: int, mask_px: int, augment: bool = False, round_: int = 0,
        check_stop: Callable[[], None] = _never_stop,
    ) -> Dataset[dict[str, Any]]:  # fmt: skip
        """Samples of a part.

        Image float32 (3, input_px, input_px) in 0..1, label float32 (C, mask_px, mask_px) in {0, 1}, case str, slice
        int, key str (content hash of the image), and view str, if there are few ways to augment the image
        (`fedfms.data.transforms.VIEW`). With `data.cache`, every slice of the part is decoded here, once, and
        cached in memory.

        Args:
            check_stop: called before each image is decoded here; may raise to stop there.

        Raises:
            DataError: no such part, or a slice that cannot be read.
        """
        if part not in self.parts:
            raise DataError(f"there is no part {part!r}", where=f"site {self.site}", do=f"one of {sorted(self.parts)}")
        transforms = make_transforms(self.spec, input_px=input_px, mask_px=mask_px, augment=augment)
        if self.spec.cache:
            for item in self.parts[part]:
                check_stop()
                self.source.read(item)
        return _Slices(self, self.parts[part], transforms, round_)


class _Slices(Dataset[dict[str, Any]]):
    """Transformed items; the randomness of each depends on its content and the round, not on the order."""

    def __init__(self, data: SiteData, items: tuple[Item, ...], transforms: Compose, round_: int) -> None:
        self._data, self._items, self._transforms, self._round = data, items, transforms, round_

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._items[index]
        image, label = self._data.source.read(item)
        random = rng(self._data.seed, self._data.site, self._round, f"augment:{item.key}")
        self._transforms.set_random_state(seed=int(random.integers(2**32)))
        channels_first = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        sample = {"image": torch.from_numpy(channels_first), "label": torch.from_numpy(label[None]), VIEW: item.key}
        sample = {name: plain(tensor) for name, tensor in self._transforms(sample).items()}
        return {**sample, "case": item.case, "slice": item.slice, "key": item.key}


def open_site(
    study: Study, site: str, settings: SiteSettings, known: Collection[Place] = (),
    check_stop: Callable[[], None] = _never_stop,
) -> SiteData:  # fmt: skip
    """The data of a site for a study.

    Missing files and wrong sizes are detected here, damage inside a file when a part is first decoded
    (`SiteData.dataset`). If the study allows unreadable images, all images are decoded and compared with the manifest
    here.

    Args:
        known: slices to skip as damaged, even if their files are good now.
        check_stop: called before each image is decoded; may raise to stop there.

    Raises:
        SettingsError: the study needs a data set, and the site has no data_root.
        DataError: no manifest or no case; a missing file, or one of another size; a label value that the data lack.
    """
    items, source = find_items(study, site, settings)
    if study.data.dataset == PHANTOM != study.name:
        _log.warning("site %s: the data set of study %s is the embedded phantom", site, study.name)
    parts, scored = split_items(study, site, items)
    damaged: frozenset[Place] = frozenset()
    if study.data.max_unreadable_images:
        damaged = find_damaged(site, parts["all"], source, study.data.max_unreadable_images, known, check_stop)
        parts = {p: tuple(i for i in own if (i.case, i.slice) not in damaged) for p, own in parts.items()}
    return SiteData(site, parts, scored, study.data, study.seed, source, damaged)


def find_items(study: Study, site: str, settings: SiteSettings) -> tuple[list[Item], Source]:
    """Every slice that a site has for a study, before subset and split, and their source.

    Raises:
        SettingsError, DataError: as `open_site`.
    """
    if study.data.dataset == PHANTOM:
        return _open_phantom(study, site)
    try:
        return _open_folder(study, site, settings)
    except DataError as error:
        raise error if error.where.startswith("site ") else error.at(f"site {site}") from error


def _open_phantom(study: Study, site: str) -> tuple[list[Item], Source]:
    spec = study.data
    used = {value for structure in spec.structures for value in structure.values}
    # Value 1 is the outermost region, also of a study that does not use it.
    phantom = make_phantom(
        study.seed, site, n=spec.phantom_images, size_px=spec.phantom_px, values=sorted({1} | used),
        shift=spec.phantom_shift,
    )  # fmt: skip
    items, pixels = [], {}
    for number, (image, label) in enumerate(zip(phantom.images, phantom.labels, strict=True)):
        case, values = f"phantom-{number:04d}", tuple(np.unique(label).tolist())
        height_px, width_px = label.shape
        items.append(Item(case, 0, phantom.patients[number], pixel_sha256(image), width_px, height_px, 3, values))
        pixels[case, 0] = image, label
    return items, MemorySource(pixels)


def _open_folder(study: Study, site: str, settings: SiteSettings) -> tuple[list[Item], Source]:
    if settings.data_root is None:
        raise SettingsError(
            f"study {study.name} needs the data set {study.data.dataset!r}, and no data_root is set",
            where=f"site {site}", do="set data_root in local/fedfms_site.yaml, or in the file that FEDFMS_SITE names",
        )  # fmt: skip
    if not settings.data_root.is_dir():
        raise DataError("the data root is not a folder", do="correct data_root in the site's settings, or mount it")
    folder = settings.data_root / study.data.dataset / site
    if not folder.is_dir():
        what = f"there is no folder {study.data.dataset}/{site} in the data root"
        raise DataError(what, do="convert the site with `fedfms prepare`, or correct data_root or its name")
    manifest = load_manifest(folder)
    _check_manifest(study, site, manifest, folder)
    source = FolderSource(folder, site, cache=study.data.cache)
    items = list_items(manifest)
    if not study.data.max_unreadable_images:
        for item in items:
            source.check_size(item)
    return items, source


def _check_manifest(study: Study, site: str, manifest: Manifest, folder: Path) -> None:
    if (manifest.dataset, manifest.site) != (study.data.dataset, site):
        raise DataError("the manifest is of another data set or site", do="move the folder to its place")
    if not manifest.cases:
        raise DataError("the manifest lists no case", do=CONVERT)
    missing = missing_files(manifest, folder)
    if missing and not study.data.max_unreadable_images:
        more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        raise DataError(missing[0] + more, do=CONVERT)
    for structure in study.data.structures:
        if unknown := sorted(set(structure.values) - manifest.values):
            known = {structure.name: structure.value for structure in manifest.structures}
            what = f"{structure.name!r} of study {study.name} has label values {unknown}, the data have {known}"
            raise DataError(what, do="correct data.structures in the study, or the label rule of the conversion")
    if manifest.splits != make_splits(manifest.cases):
        raise DataError(f"the splits are not those of rule {splits.RULE_VERSION}", do=CONVERT)


def split_items(study: Study, site: str, items: Sequence[Item]) -> tuple[dict[str, tuple[Item, ...]], str]:
    """Items by part and the part to score on; `max_images` applies before the split, which preserves proportions."""
    by_patient: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: (item.key, item.label_sha256, item.slice)):
        by_patient.setdefault(item.patient, []).append(item)
    hashes = {patient: [item.key for item in own] for patient, own in by_patient.items()}
    blank = {blank_sha256(item.width_px, item.height_px, item.channels) for item in items}
    chosen = splits.subset(hashes, study.data.max_images, study.seed, blank)

    def of(patients: Sequence[str]) -> tuple[Item, ...]:
        found = [item for patient in patients for item in by_patient[patient][: len(chosen[patient])]]
        return tuple(sorted(found, key=lambda item: (item.key, item.label_sha256, item.slice)))

    everything = of(tuple(chosen))
    personal = study.data.protocol == "personal"
    if site in study.held_out:
        held = {"train": (), "val": everything, "all": everything}
        return ({**held, "test": everything} if personal else held), "all"
    sides = splits.assign(chosen, study.data.protocol, study.seed, blank)
    parts = {name: of(members) for name, members in sides.items()}
    parts["all"] = everything
    if personal:
        parts["val"] = parts["test"]
    return parts, "test" if personal else "val"
