"""A network as a file that runs without this package: TorchScript for MONAI, ONNX for all else."""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fedfms.errors import SettingsError
from fedfms.models import SegmentationModel

OPSET = 20
_BATCH = 2  # of the example; any other may follow


def write_torchscript(model: SegmentationModel, path: Path) -> None:
    """Images float32 (B, 3, input_px, input_px) in 0..1 -> logits (B, C, mask_px, mask_px), for any B."""
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        torch.jit.save(torch.jit.trace(model, _example(model), check_trace=False), buffer)
    with zipfile.ZipFile(buffer) as traced, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as kept:
        for name in traced.namelist():
            # where each line of code was traced: folders of this machine, and with them names of people
            if not name.endswith(".debug_pkl"):
                kept.writestr(name, traced.read(name))


def write_onnx(model: SegmentationModel, path: Path) -> None:
    """The same as ONNX: input `images`, output `logits`; above 2 GB with its tensors in files beside it.

    Raises:
        SettingsError: the packages for it are not installed.
    """
    try:
        import onnx
    except ImportError:
        raise SettingsError(
            "ONNX needs a package that is not installed", where="export", do="pip install 'fedfms[export]'"
        ) from None
    path.parent.mkdir(exist_ok=True)
    with _quiet():
        # The exporter by tracing: the one by torch.export takes minutes, and makes the same numbers (docs/using.md).
        torch.onnx.export(
            model, (_example(model),), str(path), dynamo=False, opset_version=OPSET,
            input_names=["images"], output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    onnx.checker.check_model(str(path))


def _example(model: SegmentationModel) -> torch.Tensor:
    device = next(model.parameters()).device
    return torch.zeros(_BATCH, 3, model.input_px, model.input_px, device=device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every size that it takes for constant, and sizes are: but for the batch, which tests vary."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
