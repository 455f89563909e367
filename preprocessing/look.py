"""One HTML page with pictures of converted data, to check that outlines lie on the structures.

The page holds patients' pixels. It is a single file with mode 0600, without network access or scripts, and stays at
the site.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from fedfms.data.manifest import Manifest, load_manifest
from fedfms.data.overlay import COLOURS, as_png, draw
from fedfms.data.source import FolderSource, Item, list_items
from fedfms.errors import DataError
from fedfms.preprocessing.recipe import Advance

_LARGEST_PX, _SMALLEST_PX = 480, 320  # of a panel's longer side; images between them are not scaled


@dataclass(frozen=True)
class Picture:
    """A slice: image and outlined image side by side as a PNG, and its identification."""

    png: bytes
    case: str
    slice: int
    width_px: int
    height_px: int


@dataclass(frozen=True)
class SiteLook:
    """A site's section of the page."""

    name: str  # dataset/site
    fault: str = ""  # why there are no pictures of the site; "" if there are
    counts: dict[str, int] = field(default_factory=dict)
    # by structure: number of slices that show it, median share of the image
    shares: dict[str, tuple[int, float]] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


def look_at(folder: Path, per_site: int = 1, advance: Advance | None = None) -> SiteLook:
    """Pictures and counts of a converted site's folder, or its first fault.

    Args:
        per_site: number of pictures, evenly spread by marked area over the slices that are not empty; 1: the median.
    """
    folder = folder.resolve()  # "." has no name
    name = f"{folder.parent.name}/{folder.name}"
    try:
        manifest = load_manifest(folder)
        if not manifest.cases:
            raise DataError("the manifest lists no case", do="convert the site again")
        return _look(name, manifest, FolderSource(folder, folder.name, cache=False), per_site, advance)
    except DataError as error:
        return SiteLook(name, error.line())


def spread(areas: Sequence[float], keys: Sequence[str], count: int) -> list[int]:
    """Indices of `count` entries at even steps of area; all entries if there are fewer.

    Entries without area are left out, unless all are. One entry: the lower median. Entries of equal area are ordered
    by key, so ids and file order do not matter.
    """
    shown = [index for index, area in enumerate(areas) if area > 0] or list(range(len(areas)))
    shown.sort(key=lambda index: (areas[index], keys[index]))
    count = min(count, len(shown))
    return [shown[((2 * step + 1) * len(shown) - 1) // (2 * count)] for step in range(count)]


def panels(image: NDArray[np.uint8], masks: NDArray[np.bool_]) -> Image.Image:
    """An image (H, W) or (H, W, 3) next to itself with masks (C, H, W) drawn in, at a size for viewing."""
    height_px, width_px = image.shape[:2]
    longer = max(height_px, width_px)
    # a whole factor enlarges a small image, so that each pixel is visible; lines are drawn afterwards and stay thin
    scale = _LARGEST_PX / longer if longer > _LARGEST_PX else math.ceil(_SMALLEST_PX / longer)
    size = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    pixels = np.array(Image.fromarray(image).convert("RGB").resize(size, method))
    drawn = draw(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, torch.from_numpy(masks))
    return Image.fromarray(np.concatenate([pixels, drawn], axis=1))


def make_page(looks: Sequence[SiteLook]) -> str:
    """The page as HTML with the pictures in it; every name is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    several = any(len(look.pictures) > 1 for look in looks)
    return environment.get_template("look.html.jinja").render(looks=looks, several=several, colours=COLOURS)


def _look(name: str, manifest: Manifest, source: FolderSource, per_site: int, advance: Advance | None) -> SiteLook:
    items = list_items(manifest)
    shares = np.zeros((len(items), len(manifest.structures)))
    for row, item in enumerate(items):
        label = source.read_label(item)
        shares[row] = [(label == structure.value).mean() for structure in manifest.structures]
        if advance:
            advance(row + 1, len(items))
    chosen = spread(shares.sum(axis=1).tolist(), [item.key for item in items], per_site)
    medians = {}
    for structure, column in zip(manifest.structures, shares.T, strict=True):
        present = column[column > 0]
        medians[structure.name] = len(present), float(np.median(present)) if len(present) else 0.0
    pictures = tuple(_picture(source, items[row], manifest) for row in chosen)
    return SiteLook(name, counts=manifest.counts, shares=medians, pictures=pictures)


def _picture(source: FolderSource, item: Item, manifest: Manifest) -> Picture:
    image, label = source.read(item)
    masks = np.stack([label == structure.value for structure in manifest.structures])
    return Picture(as_png(panels(image, masks)), item.case, item.slice, item.width_px, item.height_px)
