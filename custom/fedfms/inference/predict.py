"""Predicts the masks of inputs, one after another; an unreadable input does not stop the others."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fedfms.data.labelmap import label_map, own_values
from fedfms.data.native import is_inside, native_probabilities
from fedfms.data.transforms import ResizeImaged, Sample
from fedfms.errors import DataError
from fedfms.inference.inputs import Fault, Input, Pixels
from fedfms.inference.loading import LoadedModel
from fedfms.inference.outputs import OutputFolder, SliceMasks, mask_files, overlay_files
from fedfms.models import SegmentationModel
from fedfms.study import Structure
from fedfms.training.precision import Forward, available


@dataclass(frozen=True)
class Outcome:
    """The result for one input: pixels (voxels) by structure; or an `error`, one line without the file's name."""

    slices: int = 0
    pixels: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


def predict(
    loaded: LoadedModel, inputs: Sequence[Input], out: OutputFolder, *,
    batch_size: int, overlays: bool = False, done: Callable[[], None] = lambda: None,
) -> list[Outcome]:  # fmt: skip
    """Write the masks of each input, and overlays on request; `done` is called after each input.

    Raises:
        DataError: a file cannot be written to the output folder.
    """
    outcomes = []
    for number, one in enumerate(inputs, start=1):
        try:
            outcomes.append(_predict_one(loaded, one, out, batch_size, overlays))
        except _UnreadableError as error:
            outcomes.append(Outcome(error=f"input {number} of {len(inputs)}: {error}"))
        done()
    return outcomes


class _UnreadableError(Exception):
    """Why an input cannot be read."""


def _predict_one(loaded: LoadedModel, one: Input, out: OutputFolder, batch_size: int, overlays: bool) -> Outcome:
    started = time.monotonic()
    try:
        source = one.read()
    except (Fault, DataError) as error:
        raise _UnreadableError(error.line() if isinstance(error, DataError) else str(error)) from None
    structures, names = loaded.study.data.structures, loaded.study.structure_names
    precision = loaded.study.train.precision
    made = probabilities(loaded.model, source.slices, batch_size, precision, cpu_tuning=loaded.cpu_tuning)
    found = [
        native_slice(each, (pixels.shape[0], pixels.shape[1]), structures)
        for each, pixels in zip(made, source.slices, strict=True)
    ]
    counts = np.sum([slice_.masks.sum(axis=(1, 2)) for slice_ in found], axis=0)
    pixels_found = dict(zip(names, map(int, counts), strict=True))
    files = mask_files(one.name, source, found, names)
    if overlays:
        files |= overlay_files(one.name, source, found, names)
    seconds = time.monotonic() - started
    line = {"input": one.name, "slices": len(found), "pixels": pixels_found, "seconds": round(seconds, 3)}
    out.put(line, files)
    return Outcome(len(found), pixels_found, seconds)


def model_input(pixels: Pixels, input_px: int) -> torch.Tensor:
    """A slice, uint8 (H, W) or (H, W, 3) -> float32 (3, input_px, input_px) in 0..1, as in training."""
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    sample: Sample = {"image": torch.from_numpy(channels_first.copy())}  # torch requires a writable array
    image: torch.Tensor = ResizeImaged(("image",), input_px)(sample)["image"]
    return image


def probabilities(
    model: SegmentationModel, slices: Sequence[Pixels], batch_size: int, precision: str = "float32", *,
    cpu_tuning: bool = True,
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """(C, mask_px, mask_px) in 0..1 for each slice, in order; in float32 if the device lacks the precision.

    Args:
        cpu_tuning: as for `Forward`.
    """
    device = next(model.parameters()).device
    forward = Forward(model, precision if available(precision, device) else "float32", cpu_tuning=cpu_tuning)
    for start in range(0, len(slices), batch_size):
        batch = torch.stack([model_input(pixels, model.input_px) for pixels in slices[start : start + batch_size]])
        with torch.inference_mode():
            found = torch.sigmoid(forward.logits(batch)).cpu()
        yield from found.numpy()


def native_slice(found: NDArray[np.float32], size: tuple[int, int], structures: Sequence[Structure]) -> SliceMasks:
    """Probabilities (C, mask_px, mask_px) -> masks of a slice of native `size` (H, W).

    If one label map can hold all structures, the masks are the map's, so that files and pixel counts agree.
    """
    values = [structure.values for structure in structures]
    smooth = native_probabilities(found, size)
    masks = is_inside(smooth)
    if own_values(values) is None:
        return SliceMasks(masks, None)
    labels = label_map(smooth, masks, values)
    return SliceMasks(np.stack([np.isin(labels, of) for of in values]), labels)
