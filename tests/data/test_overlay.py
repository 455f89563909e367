"""Overlays: positions and colours of what is drawn, and no metadata in the file."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fedfms.data.overlay import COLOURS, overlay, overlay_png

GREY = torch.full((3, 8, 12), 0.4)  # 102 of 255
H, W = 8, 12


def _mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[character == "x" for character in row] for row in rows])


NONE = torch.zeros(4, 6, dtype=torch.bool)
BLOCK = _mask("......", ".xxx..", ".xxx..", ".xxx..")  # at 4 x 6: rows 2-7, columns 2-7 of the image


def _both(truth: torch.Tensor, prediction: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    return {"truth": truth, "prediction": truth if prediction is None else prediction}


def _panels(picture: Image.Image) -> list[np.ndarray]:
    pixels = np.asarray(picture)
    return [pixels[:H, index * W : (index + 1) * W] for index in range(3)]


def test_three_panels_by_hand() -> None:
    picture = overlay(GREY, _both(BLOCK[None], NONE[None]))
    assert (picture.mode, picture.size) == ("RGB", (3 * W, H))
    image, truth, prediction = _panels(picture)
    assert (image == 102).all()
    assert (prediction == 102).all()
    outline = np.zeros((H, W), bool)
    outline[2:, [2, 7]] = outline[2, 2:8] = True  # no line along the image's own edge
    fill = np.zeros((H, W), bool)
    fill[3:, 3:7] = True
    assert (truth[outline] == COLOURS[0]).all()
    expected = [round(0.7 * 102 + 0.3 * channel) for channel in COLOURS[0]]
    assert (truth[fill] == expected).all()
    assert (truth[~(outline | fill)] == 102).all()


def test_structures_have_their_own_colours_and_outlines_stay_visible() -> None:
    inner = _mask("......", "......", "..x...", "..x...")
    for order in ((BLOCK, inner), (inner, BLOCK)):
        _, truth, prediction = _panels(overlay(GREY, _both(torch.stack(order))))
        assert (truth == prediction).all()
        for colour in COLOURS[:2]:
            assert (truth == colour).all(-1).any()


def test_colours_are_distinct_and_more_structures_than_colours_are_drawn() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
    masks = BLOCK[None].repeat(len(COLOURS) + 2, 1, 1)
    assert overlay(GREY, _both(masks), [f"s{index}" for index in range(len(masks))]).width == 3 * W


@pytest.mark.parametrize(("px", "line_px"), [(64, 1), (512, 2), (1024, 4)])
def test_line_width_scales_with_the_image(px: int, line_px: int) -> None:
    half = torch.zeros(1, 2, 2, dtype=torch.bool)
    half[..., 0] = True
    _, truth, _ = np.split(np.asarray(overlay(torch.zeros(3, px, px), _both(half))), 3, axis=1)
    columns = np.flatnonzero((truth == COLOURS[0]).all(-1).all(0))
    assert columns.tolist() == list(range(px // 2 - line_px, px // 2))


def test_caption_is_below_the_panels_in_the_structures_colours() -> None:
    image, masks = torch.zeros(3, 64, 96), torch.zeros(2, 4, 4, dtype=torch.bool)
    picture = overlay(image, _both(masks), ["disc", "cup"])
    pixels = np.asarray(picture)
    assert pixels.shape[0] > 64
    assert not pixels[:64].any()
    text = pixels[64:, :96].reshape(-1, 3).astype(float)  # anti-aliased: pixels have the hue, darkened
    strength = text.max(-1, keepdims=True)
    for colour in COLOURS[:2]:
        same_hue = np.abs(text - strength * np.asarray(colour) / max(colour)).max(-1) < 2
        assert (same_hue & (strength[:, 0] > 100)).any()


def test_full_masks_and_values_out_of_range() -> None:
    image = torch.stack([torch.full((H, W), value) for value in (-1.0, 0.5, 2.0)])
    full = torch.ones(1, 4, 6, dtype=torch.bool)
    first, truth, _ = _panels(overlay(image, _both(full)))
    assert first[0, 0].tolist() == [0, 128, 255]
    assert (truth == truth[0, 0]).all()  # filled, without an outline


def test_png_holds_pixels_and_no_text_chunk() -> None:
    data = overlay_png(GREY, _both(BLOCK[None]), ["disc"])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        assert picture.info == {}
        assert np.array_equal(np.asarray(picture), np.asarray(overlay(GREY, _both(BLOCK[None]), ["disc"])))


def test_without_the_truth_there_are_two_panels() -> None:
    whole, part = overlay(GREY, _both(NONE[None], BLOCK[None])), overlay(GREY, {"prediction": BLOCK[None]})
    image, _, prediction = _panels(whole)
    assert np.array_equal(np.asarray(part), np.concatenate([image, prediction], axis=1))
