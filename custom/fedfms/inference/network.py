"""A network as a file that runs without this package: TorchScript for MONAI, ONNX for other software."""

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
_BATCH = 2  # of the example; the file accepts any batch size


def write_torchscript(model: SegmentationModel, path: Path) -> None:
    """Images float32 (B, 3, input_px, input_px) in 0..1 -> logits (B, C, mask_px, mask_px), for any B."""
    buffer = io.BytesIO()
    with _silenced(), torch.no_grad():
        torch.jit.save(torch.jit.trace(model, _example(model), check_trace=False), buffer)
    with zipfile.ZipFile(buffer) as traced, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as cleaned:
        for name in traced.namelist():
            if not name.endswith(".debug_pkl"):  # source paths of this machine, which may contain user names
                cleaned.writestr(name, traced.read(name))


def write_onnx(model: SegmentationModel, path: Path) -> None:
    """The same network as ONNX: input `images`, output `logits`; above 2 GB with its tensors in separate files.

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
    with _silenced():
        # The tracing exporter: torch.export's takes minutes and gives the same numbers (docs/using.md).
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
def _silenced() -> Iterator[None]:
    """Tracing warns about every size that it treats as constant. They are constant, except the batch: see the tests."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
