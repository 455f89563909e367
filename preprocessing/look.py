"""A page of pictures of converted data: at each site, does the outline lie on the thing?

The page holds patients' pixels. It is one file, mode 0600, that needs no network and no script; it stays at the site.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedfms.data.manifest import Manifest, load_manifest
from fedfms.data.overlay import COLOURS, as_png, draw
from fedfms.data.source import FolderSource, Item, list_items
from fedfms.errors import DataError

_LARGEST_PX, _SMALLEST_PX = 480, 320  # of a panel's longer side; between them an image keeps its size
_STYLE = """\
body { font: 15px/1.4 sans-serif; margin: 2em; color: #222; }
section { margin-bottom: 2.5em; }
img { display: block; max-width: 100%; margin: .3em 0; }
table { border-collapse: collapse; }
th, td { padding: .1em 1em .1em 0; text-align: left; }
.chip { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid #222; }
.fault { color: #a00; }
"""
# A browser is told, too, that nothing may be fetched: names in the data must not be able to ask for anything.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Converted data</title>
<style>
{style}</style>
</head>
<body>
<h1>Converted data</h1>
<p>This page shows patients' images. It stays at the site.</p>
<p>Each picture: the image, and the same with its structures filled lightly and outlined. Shown is the slice whose
marked area is the median of all that are not empty{several}. Areas: share of the image, median over the slices that
show the structure.</p>
{sections}</body>
</html>
"""
Advance = Callable[[int, int], None]  # slices read, slices in all


@dataclass(frozen=True)
class Picture:
    """A slice as a PNG, image and outlined image side by side, and what it is of."""

    png: bytes
    case: str
    slice: int
    width_px: int
    height_px: int


@dataclass(frozen=True)
class SiteLook:
    """What the page says of a site; `shares` is by structure (slices that show it, median share of the image)."""

    name: str  # dataset/site
    counts: dict[str, int]
    shares: dict[str, tuple[int, float]]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class SiteFault:
    """A site that cannot be looked at, and why."""

    name: str
    line: str


def look_at(folder: Path, per_site: int = 1, advance: Advance | None = None) -> SiteLook | SiteFault:
    """The pictures and counts of a converted site's folder; the first fault met, where there is one.

    Args:
        per_site: pictures, evenly spread over the slices that are not empty, by marked area; 1: the median.
    """
    folder = folder.resolve()  # "." has no name
    name = f"{folder.parent.name}/{folder.name}"
    try:
        manifest = load_manifest(folder)
        if not manifest.cases:
            raise DataError("the manifest lists no case", do="convert the site again")
        return _look(name, manifest, FolderSource(folder, folder.name, cache=False), per_site, advance)
    except DataError as error:
        return SiteFault(name, error.line())


def spread(areas: Sequence[float], keys: Sequence[str], count: int) -> list[int]:
    """Indices of `count` entries (all, if there are fewer) at even steps of area, of those that are not empty; 1: the
    lower median. Where none has an area, of all. Equal areas are ordered by key, so ids and order play no part.
    """
    shown = [index for index, area in enumerate(areas) if area > 0] or list(range(len(areas)))
    shown.sort(key=lambda index: (areas[index], keys[index]))
    count = min(count, len(shown))
    return [shown[((2 * step + 1) * len(shown) - 1) // (2 * count)] for step in range(count)]


def panels(image: NDArray[np.uint8], masks: NDArray[np.bool_]) -> Image.Image:
    """An image (H, W) or (H, W, 3) beside itself with masks (C, H, W) drawn in, at a size that can be looked at."""
    height_px, width_px = image.shape[:2]
    longer = max(height_px, width_px)
    # A small image is enlarged by a whole number, each pixel to be seen; the lines are drawn after, so they stay thin.
    scale = _LARGEST_PX / longer if longer > _LARGEST_PX else math.ceil(_SMALLEST_PX / longer)
    size = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    way = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    pixels = np.array(Image.fromarray(image).convert("RGB").resize(size, way))
    drawn = draw(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, torch.from_numpy(masks))
    return Image.fromarray(np.concatenate([pixels, drawn], axis=1))


def make_page(looks: Sequence[SiteLook | SiteFault]) -> str:
    """The page, HTML: pictures are in it, every name is escaped."""
    most = max((len(look.pictures) for look in looks if isinstance(look, SiteLook)), default=0)
    several = ", or several, evenly spread over those areas" if most > 1 else ""
    return _PAGE.format(style=_STYLE, several=several, sections="".join(map(_section, looks)))


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
    return SiteLook(name, manifest.counts, medians, tuple(_picture(source, items[row], manifest) for row in chosen))


def _picture(source: FolderSource, item: Item, manifest: Manifest) -> Picture:
    image, label = source.read(item)
    masks = np.stack([label == structure.value for structure in manifest.structures])
    return Picture(as_png(panels(image, masks)), item.case, item.slice, item.width_px, item.height_px)


def _section(look: SiteLook | SiteFault) -> str:
    if isinstance(look, SiteFault):
        return f'<section>\n<h2>{escape(look.name)}</h2>\n<p class="fault">{escape(look.line)}</p>\n</section>\n'
    counts = ", ".join(f"{what} {count:,}" for what, count in look.counts.items())
    rows = "".join(map(_row, look.shares.items(), COLOURS * len(look.shares)))
    pictures = "".join(map(_figure, look.pictures))
    return (
        f"<section>\n<h2>{escape(look.name)}</h2>\n<p>{counts}</p>\n<table>\n"
        f"<tr><th>structure</th><th>slices</th><th>area</th></tr>\n{rows}</table>\n{pictures}</section>\n"
    )


def _row(entry: tuple[str, tuple[int, float]], colour: tuple[int, int, int]) -> str:
    name, (count, share) = entry
    chip = '<span class="chip" style="background: rgb({}, {}, {})"></span>'.format(*colour)
    area = f"{share:.2%}" if count else "-"
    return f"<tr><td>{chip}{escape(name)}</td><td>{count:,}</td><td>{area}</td></tr>\n"


def _figure(picture: Picture) -> str:
    text = f"case {picture.case}, slice {picture.slice}: {picture.width_px} x {picture.height_px} px"
    data = base64.b64encode(picture.png).decode("ascii")
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">\n<p>{escape(text)}</p>\n'
