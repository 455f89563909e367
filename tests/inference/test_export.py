"""Safetensors, ONNX and bundle give the numbers of the model, and name no site."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedfms
from fedfms.cli import main
from fedfms.errors import CheckpointError, DataError
from fedfms.inference.export import FORMATS, export
from fedfms.inference.inputs import InputRule, find_inputs
from fedfms.inference.loading import LoadedModel
from fedfms.inference.network import write_onnx, write_torchscript
from fedfms.inference.outputs import OutputFolder
from fedfms.inference.predict import predict, probabilities
from tests.inference.make import BACKBONES, SITES, global_file, loaded, picture, tiny
from tests.methods.common import same

TOLERANCE = 1e-4


def _run_bundle(bundle: Path, images: Path, out: Path) -> None:
    """Run the command of its README in a process that cannot import this package."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    blocked = "import sys, runpy; sys.modules['fedfms'] = None; runpy.run_module('monai.bundle', run_name='__main__')"
    command = [sys.executable, "-c", blocked, "run", "--config_file", "configs/inference.json"]
    done = subprocess.run(
        [*command, "--dataset_dir", str(images), "--output_dir", str(out)],
        cwd=bundle, env=clean, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def assert_bundle_predicts_alike(own: LoadedModel, bundle: Path, images: Path, folder: Path) -> None:
    """Equal probabilities within the tolerance and equal masks for every image of a folder."""
    _run_bundle(bundle, images, folder / "bundle-out")
    inputs = find_inputs(images, InputRule(), folder / "out")
    predict(own, inputs, OutputFolder(folder / "out", {}), batch_size=2)
    for one in inputs:
        due = next(probabilities(own.model, one.read().slices, 1))
        found = np.load(folder / "bundle-out" / f"{one.name}_probabilities.npy")
        np.testing.assert_allclose(found, due, atol=TOLERANCE)
        theirs, ours = (np.asarray(Image.open(folder / f / f"{one.name}_mask.png")) for f in ("bundle-out", "out"))
        assert theirs.shape == ours.shape
        assert (theirs != ours).mean() < 1e-3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    """A model, and the folder with all its formats."""
    folder = tmp_path_factory.mktemp("export")
    own = loaded(global_file(folder, tiny()))
    export(own, InputRule(depth="third"), folder / "out", formats=FORMATS, licence="CC0-1.0")
    return own, folder / "out"


@pytest.mark.slow
def test_safetensors_contain_the_whole_model(exported: tuple[LoadedModel, Path]) -> None:
    own, out = exported
    for path in (out, out / "model.safetensors"):
        again = loaded(path)
        assert same(dict(again.model.state_dict()), dict(own.model.state_dict()))
        assert (again.file.kind, again.file.round, again.file.rule) == ("final", 2, InputRule(depth="third"))
        assert again.file.sites == (2, 0)


@pytest.mark.parametrize("method", ["fednnunet", "fedunet", "feddbe"])
def test_tensors_with_two_names_and_tensors_of_a_method_are_restored(method: str, tmp_path: Path) -> None:
    own = loaded(global_file(tmp_path, tiny(method)))
    export(own, InputRule(), tmp_path / "out", formats=["safetensors"], licence="-")
    assert same(dict(loaded(tmp_path / "out").model.state_dict()), dict(own.model.state_dict()))


def test_no_site_and_no_folder_is_named_and_the_card_is_complete(exported: tuple[LoadedModel, Path]) -> None:
    _, out = exported
    secrets = [*SITES, str(Path(fedfms.__file__).parent), sys.prefix, str(Path.home()) + "/"]
    for path in out.rglob("*"):
        if path.is_file():
            assert not [word for word in secrets if word.encode() in path.read_bytes()], path.name
    card = (out / "README.md").read_text()
    for text in ("trained at 2", "Rounds: 2 of 2", "CC0-1.0", "not a medical device", "FedFMS, MICCAI 2024", "final"):
        assert text in card
    assert (out / "bundle" / "docs" / "README.md").read_text().startswith(card)


def test_metadata_has_the_keys_that_monai_requires(exported: tuple[LoadedModel, Path]) -> None:
    metadata = json.loads((exported[1] / "bundle" / "configs" / "metadata.json").read_text())
    # required by MONAI's schema of 2024-07-25
    required = {"schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task",
                "description", "authors", "copyright", "network_data_format", "required_packages_version"}  # fmt: skip
    assert required <= metadata.keys()
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [64, 64]


@pytest.mark.slow
def test_monai_runs_the_bundle_without_this_package(exported: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    own, out = exported
    images = tmp_path / "images"
    images.mkdir()
    picture(images / "a.png", (90, 120))
    picture(images / "a.jpg", (30, 40), seed=3)  # each gets its own mask
    picture(images / "a.png.jpg", (30, 40), seed=4)
    picture(images / "b.jpg", (64, 64), seed=1)
    picture(images / "c.png", (40, 300), colour=False, seed=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "a.png").convert("RGB").save(images / "d.jpg", exif=exif)
    assert_bundle_predicts_alike(own, out / "bundle", images, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_onnx_and_torchscript_give_the_same_logits_for_any_batch(backbone: str, tmp_path: Path) -> None:
    import onnxruntime

    method, *overrides = BACKBONES[backbone]
    model = loaded(global_file(tmp_path, tiny(method, *overrides))).model
    assert model.backbone == backbone
    write_onnx(model, tmp_path / "onnx" / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    write_torchscript(model, tmp_path / "model.ts")
    traced = torch.jit.load(tmp_path / "model.ts")
    for batch in (1, 3):
        images = torch.rand(batch, 3, 64, 64)
        with torch.inference_mode():
            due, script = model(images), traced(images)
        assert due.std() > 0.01  # otherwise the comparison would be trivial
        np.testing.assert_allclose(script, due, atol=TOLERANCE)
        np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], due, atol=TOLERANCE)


def test_an_export_is_replaced_and_other_files_are_untouched(tmp_path: Path) -> None:
    own = loaded(global_file(tmp_path, tiny()))
    for _ in range(2):
        names = export(own, InputRule(), tmp_path / "out", formats=["safetensors"], licence="-")
    assert names == ["README.md", "model.json", "model.safetensors"]
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(DataError, match="something other than an export"):
        export(own, InputRule(), tmp_path / "out", formats=["safetensors"], licence="-")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the folder"):
        export(own, InputRule(), tmp_path / "file" / "out", formats=["safetensors"], licence="-")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_other_safetensors_files_are_rejected(exported: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    shutil.copytree(exported[1], tmp_path / "out")
    (tmp_path / "out" / "other.safetensors").write_bytes(b"another model")
    for name in ("other.safetensors", "none.safetensors"):
        with pytest.raises(CheckpointError, match="the only readable file"):
            loaded(tmp_path / "out" / name)


def test_a_damaged_export_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(global_file(tmp_path, tiny("fedsca")))
    out = tmp_path / "out"
    assert main(["export", "--model", model, "--out", str(out), "--format", "safetensors"]) == 0
    output = capsys.readouterr()
    assert "shared model of phantom, fedsca" in output.out
    assert "warning: the file contains the shared tensors" in output.err
    (out / "model.safetensors").write_bytes(b"cut")
    picture(tmp_path / "a.png")
    command = ["predict", "--model", str(out), "--input", str(tmp_path / "a.png"), "--out", str(tmp_path / "masks")]
    assert main(command) == 1
    assert capsys.readouterr().err == "fedfms: --model: model.safetensors is damaged; export the model again\n"
    (out / "model.json").write_text("{}")
    assert main(command) == 1
    assert "--model, model.json: missing key 'kind'; export the model again" in capsys.readouterr().err
