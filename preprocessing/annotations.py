"""Published annotations -> arrays: outlines in XML, masks of values, one mask file per instance.

Two XML formats are supported: Aperio ImageScope (`Annotations/Annotation/Regions/Region/Vertices/Vertex`, in MoNuSeg
and MoNuSAC) and a drawing program's `Document/Layers/Layer/Shapes/Shape/Data` (Emory, TCGA). Document type
declarations, and with them entities, are rejected as defusedxml does.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray

from fedfms.data.imagefile import LOSSY, open_image
from fedfms.preprocessing.images import Fault, as_fault
from fedfms.preprocessing.recipe import Pixels

_OVAL_POINTS = 64


@dataclass(frozen=True)
class Outline:
    """A closed line."""

    points: NDArray[np.float64]  # (N, 2) as (x, y) in pixels; pixel (0, 0) covers 0..1
    kind: str = ""  # its name in the annotation
    hole: bool = False  # the inside is background


def read_values(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Stored values (H, W) of a mask: the indices of a palette image, one channel of an image whose channels are equal.

    Raises:
        Fault: damaged, too large, with several pages, or coloured.
    """
    return _values(path)[0]


def read_marked(path: Path) -> NDArray[np.bool_]:
    """The marked pixels (H, W) of a mask: above 0; above 127 in a JPEG, whose background is not exact.

    Raises:
        Fault: as `read_values`.
    """
    values, kind = _values(path)
    marked: NDArray[np.bool_] = values > (127 if kind in LOSSY else 0)
    return marked


def merge_instances(paths: Iterable[Path]) -> Pixels:
    """Union (H, W) of masks of one instance each, as label value 1.

    Raises:
        Fault: there are no masks, their sizes differ, or as `read_values`.
    """
    merged: NDArray[np.bool_] | None = None
    for marked in map(read_marked, paths):
        merged = marked if merged is None else merged
        if merged.shape != marked.shape:
            raise Fault("the masks of one image have different sizes")
        merged = merged | marked
    if merged is None:
        raise Fault("the image has no mask")
    return merged.astype(np.uint8)


def read_outlines(path: Path) -> tuple[Outline, ...]:
    """Outlines of an XML file, in its order; shapes without an area (pins, lines) are left out.

    Raises:
        Fault: XML of an unknown kind, a document type declaration, a coordinate that is not finite, or a shape that is
            neither polygon nor oval.
    """
    with as_fault("annotation"):
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_WithoutDoctype()))
        if root.tag == "Annotations":
            found = list(_aperio(root))
        elif root.tag == "Document":
            found = [_shape(shape) for shape in root.iter("Shape")]
        else:
            raise Fault("the annotation is XML of an unknown kind")
        if any(not np.isfinite(outline.points).all() for outline in found):
            raise Fault("the annotation has a coordinate that is not a finite number")
        return tuple(outline for outline in found if len(outline.points) >= 3)


def fill(outlines: Iterable[Outline], height_px: int, width_px: int) -> Pixels:
    """Label value 1 (H, W) where the centre of a pixel lies inside an outline and in no hole.

    Parts outside the image are cut off.

    Raises:
        Fault: no outline touches the image, so the outlines are of another image or scale.
    """
    label = np.zeros((height_px, width_px), dtype=np.uint8)
    ordered = sorted(outlines, key=lambda outline: outline.hole)
    hit = not ordered
    for outline in ordered:
        low = np.floor(outline.points.min(axis=0)).clip(0, (width_px, height_px)).astype(int)
        high = np.ceil(outline.points.max(axis=0)).clip(0, (width_px, height_px)).astype(int)
        (x0, y0), (x1, y1) = low, high
        if x0 >= x1 or y0 >= y1:
            continue
        hit = True
        x, y = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
        inside = Polygon(outline.points).contains_points(np.column_stack((x.ravel(), y.ravel())))
        label[y0:y1, x0:x1][inside.reshape(x.shape)] = 0 if outline.hole else 1
    if not hit:
        raise Fault("every outline of the annotation lies outside the image")
    return label


def _values(path: Path) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], str]:
    """Stored values (H, W) and the format of the file."""
    with as_fault("mask"):
        opened, kind = open_image(path, "mask")
        if opened.mode in ("1", "LA", "PA"):
            opened = opened.convert("P" if opened.mode == "PA" else "L")
        values = np.asarray(opened)
        if values.ndim == 3:
            values = values[..., :3]  # alpha is ignored
            if (values != values[..., :1]).any():
                raise Fault("the mask is coloured, so its values are unknown")
            values = values[..., 0]
        if values.dtype == np.uint8:
            return values, kind
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max or (values % 1).any():
            raise Fault("the mask has values that are not whole numbers in 0..65535")
        return values.astype(np.uint16), kind


def _aperio(root: ElementTree.Element) -> Iterator[Outline]:
    for annotation in root.iter("Annotation"):
        # MoNuSAC: the class is the name of the first attribute, and the annotation's own name is empty
        attribute = annotation.find("Attributes/Attribute")
        kind = annotation.get("Name", "") or (attribute.get("Name", "") if attribute is not None else "")
        for region in annotation.iter("Region"):
            yield Outline(_points(region.iter("Vertex")), kind, hole=region.get("NegativeROA") == "1")


def _shape(shape: ElementTree.Element) -> Outline:
    """The outline of a drawn shape. The points of a `SmoothPolygon` are treated as corners: they are close together."""
    data = shape.find("Data")
    if data is None or shape.get("Type") not in ("Polygon", "SmoothPolygon", "Oval"):
        raise Fault("the annotation has a shape that is neither polygon nor oval")
    rotation = float(data.get("Rotation", "0"))
    if shape.get("Type") == "Oval":
        return Outline(_oval(data.find("Extent"), rotation))
    if rotation:
        raise Fault("the annotation has a rotated polygon, whose position is unknown")
    return Outline(_points(data.iter("Point")))


def _oval(extent: ElementTree.Element | None, rotation: float) -> NDArray[np.float64]:
    """Points (N, 2) of an ellipse in a box that is rotated about its centre, clockwise in degrees."""
    if extent is None:
        raise Fault("the annotation has an oval without an extent")
    x, y, width, height = (float(extent.attrib[key]) for key in ("X", "Y", "Width", "Height"))
    turn, angle = math.radians(rotation), np.linspace(0, 2 * np.pi, _OVAL_POINTS, endpoint=False)
    across, down = np.cos(angle) * width / 2, np.sin(angle) * height / 2
    horizontal = x + width / 2 + across * math.cos(turn) - down * math.sin(turn)
    vertical = y + height / 2 + across * math.sin(turn) + down * math.cos(turn)
    return np.column_stack((horizontal, vertical))


def _points(elements: Iterable[ElementTree.Element]) -> NDArray[np.float64]:
    pairs = [(float(element.attrib["X"]), float(element.attrib["Y"])) for element in elements]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


class _WithoutDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_: object) -> None:
        raise Fault("the annotation has a document type declaration, which is not allowed")
