"""Reads an image file (Pillow, tifffile or a NumPy array) as upright uint8 pixels, for conversion and prediction.

Every defect of a file becomes a `Fault`, which names neither file nor folder.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy"})
LOSSY = ("JPEG", "MPO")  # in Pillow's terms
GREY, COLOUR = ("1", "L", "LA"), ("P", "RGB", "RGBA", "CMYK", "YCbCr")  # modes of 8 bits
_ORIENTATION = 0x0112  # the tag is the same in TIFF and EXIF


class Fault(Exception):
    """Why a case cannot be converted; the text is safe to show."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Pixels (H, W) of a grey image or (H, W, 3) of a colour one, EXIF orientation applied, without alpha.

    Raises:
        Fault: damaged, too large, of several pages, or not of 8 bits.
    """
    with as_fault("image"):
        opened, _ = open_image(path, "image")
        if opened.mode in GREY:
            return np.asarray(opened.convert("L"))
        if opened.mode in COLOUR:
            return np.asarray(opened.convert("RGB"))
        raise Fault(f"the image has mode {opened.mode}, not 8 bits; window it to 8 bits first")


def open_image(path: Path, what: str) -> tuple[Image.Image, str]:
    """The decoded image, EXIF orientation applied, and the format of its file.

    `what` is "image" or "mask": an array of a mask may be of wider integers than an image's.

    Raises:
        Fault: several pages, too many pixels, not 8 bits; anything else from the libraries.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return Image.fromarray(_load_array(path, what)), "NPY"
    try:
        return _with_pillow(path, what)
    except UnidentifiedImageError:
        if suffix not in (".tif", ".tiff"):
            raise
    # CVC-ClinicDB: "MinIsBlack" with three samples, which is not in Pillow's table of TIFF modes
    return _with_tifffile(path, what), "TIFF"


def _with_pillow(path: Path, what: str) -> tuple[Image.Image, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1 and opened.format not in LOSSY:
                raise _pages(what)
            kind = str(opened.format)
            opened.load()
            return ImageOps.exif_transpose(opened), kind


def _with_tifffile(path: Path, what: str) -> Image.Image:
    with tifffile.TiffFile(path) as file:
        if len(file.pages) > 1:
            raise _pages(what)
        page = file.pages.first
        _reject_bomb(page.imagewidth * page.imagelength, what)
        if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise Fault(f"the {what} is a TIFF of an unsupported kind; write it as PNG")
        array, axes, tag = page.asarray(), page.axes, page.tags.get(_ORIENTATION)
    if axes == "SYX":
        array = np.moveaxis(array, 0, -1)
    elif axes not in ("YX", "YXS"):
        raise Fault(f"the {what} is a TIFF with axes other than height, width and colour")
    image = Image.fromarray(_eight_bits(array, what))
    image.getexif()[_ORIENTATION] = int(tag.value) if tag else 1
    return ImageOps.exif_transpose(image)


def _load_array(path: Path, what: str) -> NDArray[np.uint8]:
    # memory-mapped: a header may promise any number of pixels
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise Fault(f"the {what} is several arrays; write one array per file")
    _reject_bomb(array.size, what)
    if what == "mask" and np.issubdtype(array.dtype, np.integer):
        if array.size and (array.min() < 0 or array.max() > 255):
            raise Fault(f"the mask has values from {array.min()} to {array.max()}, not within 0..255")
        array = array.astype(np.uint8)
    return _eight_bits(array, what)


def _eight_bits(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """The array as uint8 (H, W) or (H, W, 2 to 4), in memory; true becomes 255, as in an image of one bit."""
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    if array.dtype != np.uint8:
        raise Fault(f"the {what} is of {array.dtype.name}, not 8 bits; window it to 8 bits first")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise Fault(f"the {what} has the shape {list(array.shape)}, not height, width and up to 4 channels")
    return np.ascontiguousarray(array)


def _pages(what: str) -> Fault:
    return Fault(f"the {what} has several pages; write one file per slice")


def _reject_bomb(pixels: int, what: str) -> None:
    if pixels > (Image.MAX_IMAGE_PIXELS or pixels):
        raise Fault(f"the {what} has more than {Image.MAX_IMAGE_PIXELS} pixels")


@contextmanager
def as_fault(what: str) -> Iterator[None]:
    """Any error while reading one file (`what`: "image", "mask") becomes a `Fault`.

    Texts of the libraries' and the system's errors may contain the path, so they are not passed on.
    """
    try:
        yield
    except Fault:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Fault(f"the {what} has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except FileNotFoundError as error:
        raise Fault(f"the {what} is missing") from error
    except PermissionError as error:
        raise Fault(f"the {what} cannot be read: permission denied") from error
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything inside a library
        raise Fault(f"the {what} cannot be read: damaged, cut short, or of an unknown kind") from error
