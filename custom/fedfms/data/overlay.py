"""Draws an image, its ground truth and a prediction side by side. The picture is patient data and stays at the site."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

# Okabe and Ito's palette, distinguishable with any colour vision.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0))
_FILL = 0.3
_OUTLINE_PX_PER_IMAGE_PX = 1 / 256
_CAPTION_PX_PER_IMAGE_PX = 1 / 24
_MIN_CAPTION_PX = 11
_GAP_PX = 4


def overlay(image: torch.Tensor, masks: Mapping[str, torch.Tensor], structures: Sequence[str] = ()) -> Image.Image:
    """Panels side by side: the image, and the image with each of `masks`; below them the structures' names.

    Args:
        image: float (3, H, W) in 0..1.
        masks: by title ("truth", "prediction"), bool (C, h, w), resized to the image (nearest).
        structures: C names for the caption; empty: no caption. The only other texts are the titles.
    """
    panels = Image.fromarray(np.concatenate([_pixels(image), *(draw(image, own) for own in masks.values())], axis=1))
    return _with_caption(panels, structures, ["", *masks]) if structures else panels


def overlay_png(image: torch.Tensor, masks: Mapping[str, torch.Tensor], structures: Sequence[str]) -> bytes:
    """`overlay` as the bytes of a PNG without text chunks."""
    return as_png(overlay(image, masks, structures))


def as_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG without text chunks."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def draw(image: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """The image, uint8 (H, W, 3), with all masks filled lightly, then outlined, so that fills hide no outline.

    Args:
        image: float (3, H, W) in 0..1.
        masks: bool (C, h, w), resized to the image (nearest); mask k in colour k of `COLOURS`, which repeat.
    """
    masks = _fit(masks, (image.shape[-2], image.shape[-1]))
    pixels = _pixels(image).astype(np.float32)
    layers = [(mask.cpu(), np.asarray(c, np.float32)) for mask, c in zip(masks, COLOURS * len(masks), strict=False)]
    for mask, colour in layers:
        inside = mask.numpy()
        pixels[inside] = (1 - _FILL) * pixels[inside] + _FILL * colour
    for mask, colour in layers:
        pixels[_outline(mask)] = colour
    return pixels.round().astype(np.uint8)


def _with_caption(panels: Image.Image, structures: Sequence[str], titles: Sequence[str]) -> Image.Image:
    """The panels, one for each title, above the structures' names, and above the titles where there is space."""
    width = panels.width // len(titles)
    font = ImageFont.load_default(
        size=max(_MIN_CAPTION_PX, round(min(width, panels.height) * _CAPTION_PX_PER_IMAGE_PX))
    )
    ascent_and_descent = font.getbbox("Ápgj")[3]
    sheet = Image.new("RGB", (panels.width, int(ascent_and_descent) + panels.height + _GAP_PX), "black")
    sheet.paste(panels, (0, 0))
    pen, y = ImageDraw.Draw(sheet), panels.height + _GAP_PX // 2
    x: float = _GAP_PX
    for name, colour in zip(structures, COLOURS * len(structures), strict=False):
        pen.text((x, y), name, fill=colour, font=font)
        x += pen.textlength(f"{name}  ", font=font)
    for index, title in enumerate(titles):
        right = (index + 1) * width - pen.textlength(title, font=font) - _GAP_PX
        if right > x:  # otherwise the structures' names need the space
            pen.text((right, y), title, fill="white", font=font)
    return sheet


def _fit(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(masks[None].float(), size, mode="nearest-exact")[0] > 0.5


def _pixels(image: torch.Tensor) -> np.ndarray:
    array: np.ndarray = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return array


def _outline(inside: torch.Tensor) -> np.ndarray:
    """Pixels of a mask (H, W) near its boundary, but not at the image's edge; the width scales with the image."""
    width = max(1, round(min(inside.shape) * _OUTLINE_PX_PER_IMAGE_PX))
    outside = (~inside).float()[None, None]
    near_outside = functional.max_pool2d(outside, 2 * width + 1, stride=1, padding=width)[0, 0] > 0
    edge: np.ndarray = (inside & near_outside).numpy()
    return edge
