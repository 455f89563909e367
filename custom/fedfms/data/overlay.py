"""A picture of an image, its truth and a prediction side by side. It shows a patient's image: it stays at the site."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

# Okabe and Ito's palette, which people with any colour vision can tell apart.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0))
_FILL = 0.3
_OUTLINE_PX_PER_IMAGE_PX = 1 / 256
_CAPTION_PX_PER_IMAGE_PX = 1 / 24
_CAPTION_PX = 11  # at least, to be read
_GAP_PX = 4


def overlay(
    image: torch.Tensor, truth: torch.Tensor, prediction: torch.Tensor, structures: Sequence[str] = ()
) -> Image.Image:
    """Three panels side by side: image, truth, prediction; under them the structures' names in their colours.

    Args:
        image: float (3, H, W) in 0..1.
        truth, prediction: bool (C, h, w), resized to the image (nearest).
        structures: C names for the caption; none: no caption. Nothing else is written on the picture but
            "truth" and "prediction".
    """
    panels = [_pixels(image), draw(image, truth), draw(image, prediction)]
    pixels = np.concatenate(panels, axis=1)
    titles = ("", "truth", "prediction")
    return _with_caption(Image.fromarray(pixels), structures, titles) if structures else Image.fromarray(pixels)


def prediction_png(image: torch.Tensor, prediction: torch.Tensor, structures: Sequence[str]) -> bytes:
    """As `overlay_png`, where there is no truth: image and prediction."""
    panels = np.concatenate([_pixels(image), draw(image, prediction)], axis=1)
    return as_png(_with_caption(Image.fromarray(panels), structures, ("", "prediction")))


def overlay_png(image: torch.Tensor, truth: torch.Tensor, prediction: torch.Tensor, structures: Sequence[str]) -> bytes:
    """`overlay` as the bytes of a PNG, which holds no text beside the pixels."""
    return as_png(overlay(image, truth, prediction, structures))


def as_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG, which holds no text beside the pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def draw(image: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """The image, uint8 (H, W, 3), with each mask filled lightly, then each outlined: a fill must not hide an outline.

    Args:
        image: float (3, H, W) in 0..1.
        masks: bool (C, h, w), resized to the image (nearest); mask k in `COLOURS[k]`, from the start when they run out.
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
    """Under the panels, one for each title: the structures' names, and the titles where these leave room."""
    width = panels.width // len(titles)
    font = ImageFont.load_default(size=max(_CAPTION_PX, round(min(width, panels.height) * _CAPTION_PX_PER_IMAGE_PX)))
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
        if right > x:  # else the structures' names need the room
            pen.text((right, y), title, fill="white", font=font)
    return sheet


def _fit(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(masks[None].float(), size, mode="nearest-exact")[0] > 0.5


def _pixels(image: torch.Tensor) -> np.ndarray:
    array: np.ndarray = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return array


def _outline(inside: torch.Tensor) -> np.ndarray:
    """Pixels of a mask (H, W) near one outside it; a line of the same look at any size. The image's edge is none."""
    width = max(1, round(min(inside.shape) * _OUTLINE_PX_PER_IMAGE_PX))
    outside = (~inside).float()[None, None]
    near_outside = functional.max_pool2d(outside, 2 * width + 1, stride=1, padding=width)[0, 0] > 0
    edge: np.ndarray = (inside & near_outside).numpy()
    return edge
