"""Annotations as data sets ship them -> arrays: outlines in XML, masks of values, a mask file for each instance.

XML comes in two kinds: Aperio ImageScope (`Annotations/Annotation/Regions/Region/Vertices/Vertex`, as MoNuSeg and
MoNuSAC have it) and the drawing program's `Document/Layers/Layer/Shapes/Shape/Data` (Emory, TCGA). It is parsed
by expat with document type declarations refused, and with them entities: what defusedxml would do, without a
further dependency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray

from fedfms.data.imagefile import LOSSY, open_image
from preprocessing.images import Fault, as_fault
from preprocessing.recipe import Pixels

_OVAL_POINTS = 64


@dataclass(frozen=True)
class Outline:
    """A closed line: points (N, 2) as (x, y) in pixels, where pixel (0, 0) covers 0..1; `kind` is the name that
    the annotation gives it ("" for none); inside a hole nothing is marked.
    """

    points: NDArray[np.float64]
    kind: str = ""
    hole: bool = False


def read_values(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Stored values (H, W) of a mask: indices of a palette image, the one channel of a grey-coloured one.

    Raises:
        Fault: damaged, too large, of several pages, or of a colour.
    """
    return _values(path)[0]


def read_marked(path: Path) -> NDArray[np.bool_]:
    """Where a mask (H, W) marks anything: above 0, or above 127 in a JPEG, whose background is not exact.

    Raises:
        Fault: as `read_values`.
    """
    values, kind = _values(path)
    marked: NDArray[np.bool_] = values > (127 if kind in LOSSY else 0)
    return marked


def merge_instances(paths: Iterable[Path]) -> Pixels:
    """Union (H, W) of masks of one instance each, as label value 1.

    Raises:
        Fault: there is none, their sizes differ, or as `read_values`.
    """
    merged: NDArray[np.bool_] | None = None
    for path in paths:
        marked = read_marked(path)
        if merged is not None and merged.shape != marked.shape:
            raise Fault("the masks of one image have different sizes")
        merged = marked if merged is None else merged | marked
    if merged is None:
        raise Fault("the image has no mask")
    return merged.astype(np.uint8)


def read_outlines(path: Path) -> tuple[Outline, ...]:
    """Outlines of an XML file, in its order; what encloses no area (pins, lines) is left out.

    Raises:
        Fault: no XML of the two kinds, a document type declaration, a coordinate that is no finite number, or a
            shape that is neither polygon nor oval.
    """
    with as_fault("annotation"):
        root = _parse(path.read_bytes())
        if root.tag == "Annotations":
            found = list(_aperio(root))
        elif root.tag == "Document":
            found = [_shape(shape) for shape in root.iter("Shape")]
        else:
            raise Fault("the annotation is XML of an unknown kind")
        if any(not np.isfinite(outline.points).all() for outline in found):
            raise Fault("the annotation has a coordinate that is no finite number")
        return tuple(outline for outline in found if len(outline.points) >= 3)


def fill(outlines: Iterable[Outline], height_px: int, width_px: int) -> Pixels:
    """Label value 1 (H, W) where a pixel's centre lies inside an outline and in no hole; what lies outside the
    image is cut off.

    Raises:
        Fault: there are outlines, and none of them touches the image: they are of another one, or another scale.
    """
    label = np.zeros((height_px, width_px), dtype=np.uint8)
    seen, hit = False, False
    for outline in sorted(outlines, key=lambda outline: outline.hole):
        seen = True
        low = np.floor(outline.points.min(axis=0)).clip(0, (width_px, height_px)).astype(int)
        high = np.ceil(outline.points.max(axis=0)).clip(0, (width_px, height_px)).astype(int)
        (x0, y0), (x1, y1) = low, high
        if x0 >= x1 or y0 >= y1:
            continue
        hit = True
        x, y = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
        inside = Polygon(outline.points).contains_points(np.column_stack((x.ravel(), y.ravel())))
        label[y0:y1, x0:x1][inside.reshape(x.shape)] = 0 if outline.hole else 1
    if seen and not hit:
        raise Fault("every outline of the annotation lies outside the image")
    return label


def check_size(image: NDArray[np.generic], label: NDArray[np.generic]) -> None:
    """See that an image (H, W) or (H, W, 3) and its mask (H, W) are of one size.

    Raises:
        Fault: they are not.
    """
    if image.shape[:2] != label.shape:
        sizes = [f"{pixels.shape[1]} x {pixels.shape[0]} px" for pixels in (image, label)]
        raise Fault(f"image {sizes[0]} and mask {sizes[1]} differ")


def _values(path: Path) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], str]:
    """Stored values (H, W), and the format of the file."""
    with as_fault("mask"):
        opened, kind = open_image(path, "mask")
        if opened.mode in ("1", "LA", "PA"):
            opened = opened.convert("P" if opened.mode == "PA" else "L")
        values = np.asarray(opened)
        if values.ndim == 3:
            values = values[..., :3]  # alpha plays no part
            if (values != values[..., :1]).any():
                raise Fault("the mask is coloured, so its values are not known")
            values = values[..., 0]
        if values.dtype == np.uint8:
            return values, kind
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max or (values % 1).any():
            raise Fault("the mask has values that are no whole numbers in 0..65535")
        return values.astype(np.uint16), kind


def _aperio(root: ElementTree.Element) -> Iterator[Outline]:
    for annotation in root.iter("Annotation"):
        # MoNuSAC writes the class into the first attribute's name and leaves the annotation's own name empty
        attribute = annotation.find("Attributes/Attribute")
        kind = annotation.get("Name", "") or (attribute.get("Name", "") if attribute is not None else "")
        for region in annotation.iter("Region"):
            points = _points(region.iter("Vertex"))
            yield Outline(points, kind, hole=region.get("NegativeROA") == "1")


def _shape(shape: ElementTree.Element) -> Outline:
    """A drawn shape. The points of a `SmoothPolygon` are taken for corners: they lie close to one another."""
    data = shape.find("Data")
    if data is None or shape.get("Type") not in ("Polygon", "SmoothPolygon", "Oval"):
        raise Fault("the annotation has a shape that is neither polygon nor oval")
    rotation = float(data.get("Rotation", "0"))
    if shape.get("Type") == "Oval":
        return Outline(_oval(data.find("Extent"), rotation))
    if rotation:
        raise Fault("the annotation has a rotated polygon, whose place is not known")
    return Outline(_points(data.iter("Point")))


def _oval(extent: ElementTree.Element | None, rotation: float) -> NDArray[np.float64]:
    """Points (N, 2) of an ellipse given by its box before it is turned, clockwise in degrees, about its centre."""
    if extent is None:
        raise Fault("the annotation has an oval without an extent")
    x, y, width, height = (float(extent.attrib[key]) for key in ("X", "Y", "Width", "Height"))
    turn, angle = math.radians(rotation), np.linspace(0, 2 * np.pi, _OVAL_POINTS, endpoint=False)
    across, down = np.cos(angle) * width / 2, np.sin(angle) * height / 2
    return np.column_stack(
        (
            x + width / 2 + across * math.cos(turn) - down * math.sin(turn),
            y + height / 2 + across * math.sin(turn) + down * math.cos(turn),
        )
    )


def _points(elements: Iterable[ElementTree.Element]) -> NDArray[np.float64]:
    pairs = [(float(element.attrib["X"]), float(element.attrib["Y"])) for element in elements]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _parse(text: bytes) -> ElementTree.Element:
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise Fault("the annotation has a document type declaration, which is refused")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(text, True)
    return builder.close()
