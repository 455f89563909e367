"""Real frames and volumes: predicted, exported, and predicted again with ONNX and MONAI."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedfms.inference.export import FORMATS, export
from fedfms.inference.inputs import InputRule, find_inputs
from fedfms.inference.outputs import OutputFolder
from fedfms.inference.predict import model_input, predict, probabilities
from tests.conftest import SHARED
from tests.inference.make import global_file, loaded, tiny
from tests.inference.test_export import TOLERANCE, assert_bundle_predicts_alike

pytestmark = [pytest.mark.shared, pytest.mark.slow]


def test_frames_with_predict_onnx_and_monai(shared_polyp: Path, tmp_path: Path) -> None:
    import onnxruntime

    images = tmp_path / "images"
    images.mkdir()
    # two of a hospital whose frames are PNG or TIFF, two of one with JPEG
    frames = [sorted((site / "images").iterdir())[0] for site in sorted(shared_polyp.iterdir()) if site.is_dir()]
    for number, frame in enumerate(frames):
        shutil.copyfile(frame, images / f"{number}{frame.suffix}")
    Image.open(frames[0]).save(images / "lossless.png")
    own = loaded(global_file(tmp_path, tiny()))
    export(own, InputRule(), tmp_path / "export", formats=FORMATS, licence="-")
    session = onnxruntime.InferenceSession(tmp_path / "export" / "onnx" / "model.onnx")
    for one in find_inputs(images, InputRule(), tmp_path):
        pixels = one.read().slices[0]
        logits = session.run(None, {"images": model_input(pixels, 64)[None].numpy()})[0][0]
        due = next(probabilities(own.model, [pixels], 1))
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), due, atol=TOLERANCE)
    assert_bundle_predicts_alike(own, tmp_path / "export" / "bundle", images, tmp_path)


def test_volumes_keep_shape_and_affine(tmp_path: Path) -> None:
    root = SHARED / "data" / "hippocampus3d"
    if not root.is_dir():
        pytest.skip("needs shared/data/hippocampus3d beside the checkout")
    own = loaded(global_file(tmp_path, tiny()))
    for number, site in enumerate(sorted(path for path in root.iterdir() if path.is_dir())):
        volume = sorted((site / "images").iterdir())[0]
        inputs = find_inputs(volume, InputRule(), tmp_path)
        out = tmp_path / f"out{number}"
        outcome = predict(own, inputs, OutputFolder(out, {}), batch_size=8)[0]
        source, mask = nibabel.load(volume), nibabel.load(next(out.glob("*_mask.nii.gz")))
        assert (mask.shape, outcome.error) == (source.shape, "")
        np.testing.assert_allclose(mask.affine, source.affine, atol=1e-6)
        assert int((np.asarray(mask.dataobj) > 0).sum()) == outcome.pixels["disc"]
