"""Masks of images and volumes, in their native size, orientation and affine, from the slices that training uses."""

import io
import itertools
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image

from fedfms.cli import main
from fedfms.data import open_site
from fedfms.data.intensity import eight_bits
from fedfms.errors import DataError
from fedfms.inference.inputs import Fault, InputRule, Native, find_inputs
from fedfms.inference.loading import LoadedModel
from fedfms.inference.outputs import OutputFolder, SliceMasks, mask_files
from fedfms.inference.predict import model_input, predict, probabilities
from fedfms.settings import SiteSettings
from tests.data.make import native_masks
from tests.inference.make import global_file, loaded, picture, tiny

CODES = ["".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return loaded(global_file(tmp_path_factory.mktemp("model"), tiny()))


@pytest.fixture
def model_path(tmp_path: Path) -> Iterator[str]:
    yield str(global_file(tmp_path, tiny()))


def test_the_models_input_is_the_same_as_in_training(model: LoadedModel) -> None:
    of = tiny()
    data = open_site(of, of.sites[0], SiteSettings())
    item = data.parts["all"][0]
    sample = data.dataset("all", input_px=64, mask_px=model.model.mask_px)[0]
    assert torch.equal(model_input(data.source.read(item)[0], 64), sample["image"])


def test_probabilities_do_not_depend_on_the_batch(model: LoadedModel, tmp_path: Path) -> None:
    slices = [picture(tmp_path / "a.png", seed=seed, colour=seed != 1) for seed in range(3)]
    one, two = (list(probabilities(model.model, slices, batch)) for batch in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)
    with torch.inference_mode():
        due = torch.sigmoid(model.model(model_input(slices[0], 64)[None]))[0]
    np.testing.assert_allclose(one[0], due, atol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_an_image_gets_a_mask_of_its_own_size_with_label_values(model: LoadedModel, name: str, tmp_path: Path) -> None:
    picture(tmp_path / name)
    inputs = find_inputs(tmp_path / name, InputRule(), tmp_path / "out")
    outcome = predict(model, inputs, OutputFolder(tmp_path / "out", {}), batch_size=2)[0]
    written = np.asarray(Image.open(tmp_path / "out" / "a_mask.png"))
    found = next(probabilities(model.model, inputs[0].read().slices, 1))
    cup = native_masks(found, (50, 70))[1]
    assert (written.shape, written.dtype) == ((50, 70), np.uint8)
    np.testing.assert_array_equal(written == 2, cup)
    assert outcome.pixels == {"disc": int((written > 0).sum()), "cup": int(cup.sum())}
    assert 0 < cup.sum() < cup.size
    assert stat.S_IMODE((tmp_path / "out" / "a_mask.png").stat().st_mode) == 0o600


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CODES), st.integers(0, 2), st.booleans())
def test_a_volume_of_any_orientation_gets_a_mask_with_its_voxels(
    tmp_path_factory: pytest.TempPathFactory, codes: str, coarse: int, packed: bool
) -> None:
    """The mask marks the bright voxels of the volume, with the same affine, for any axis of cutting."""
    folder = tmp_path_factory.mktemp("volume")
    rng = np.random.default_rng(coarse)
    data = rng.integers(0, 2, (5, 6, 7)).astype(np.int16) * 100
    spacing = np.where(np.arange(3) == coarse, 3.0, 1.0)
    plain = nibabel.Nifti1Image(data, np.diag([*spacing, 1.0]) + np.pad([[-3.5], [2], [9]], ((0, 1), (3, 0))))
    turned = plain.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))
    path = folder / ("v.nii.gz" if packed else "v.nii")
    nibabel.save(turned, path)
    native = find_inputs(path, InputRule(), folder / "out")[0].read()
    found = [SliceMasks(pixels[None] > 127, (pixels > 127).astype(np.uint8)) for pixels in native.slices]
    ((name, content),) = mask_files("v", native, found, ["structure"]).items()
    (folder / name).write_bytes(content)
    back = nibabel.load(folder / name)
    assert (name, back.shape, nibabel.aff2axcodes(back.affine)) == ("v_mask.nii.gz", turned.shape, tuple(codes))
    np.testing.assert_array_equal(back.affine, nibabel.load(path).affine)
    np.testing.assert_array_equal(np.asarray(back.dataobj) > 0, np.asarray(turned.dataobj) > 0)
    assert len(native.slices) == turned.shape[int(np.argmax(nibabel.affines.voxel_sizes(back.affine)))]


def test_a_volume_is_cut_according_to_the_rule(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 900, (4, 5, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([5, 1, 1, 1])), tmp_path / "v.nii")

    def slices(rule: InputRule) -> tuple[np.ndarray, ...]:
        return find_inputs(tmp_path / "v.nii", rule, tmp_path)[0].read().slices

    np.testing.assert_array_equal(slices(InputRule())[1], eight_bits(data)[1])
    np.testing.assert_array_equal(slices(InputRule(depth="third"))[1], eight_bits(data)[:, :, 1])
    around = slices(InputRule(neighbours=True))[0]
    np.testing.assert_array_equal(around, eight_bits(data)[[0, 0, 1]].transpose(1, 2, 0))
    assert {int(v) for v in np.unique(slices(InputRule(window=(450, 2)))[0])} <= {0, 64, 128, 191, 255}


def test_names_of_inputs_are_distinct(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.png.jpg", "b.png", "b.nii.gz.png", "b.nii.gz", "c.png"):
        (tmp_path / name).touch()
    names = [one.name for one in find_inputs(tmp_path, InputRule(), tmp_path / "out")]
    assert sorted(names) == ["a.jpg", "a.png", "a.png.jpg", "b.nii.gz", "b.nii.gz.png", "b.png", "c"]


def test_structures_that_do_not_fit_one_map_get_a_file_each(tmp_path: Path) -> None:
    parts = "{name: a, values: [1]}, {name: b, values: [2]}"
    of = tiny("fedmsa", f"data.structures=[{{name: whole, values: [1, 2]}}, {parts}]")
    picture(tmp_path / "x.png")
    inputs = find_inputs(tmp_path / "x.png", InputRule(), tmp_path / "out")
    predict(loaded(global_file(tmp_path, of)), inputs, OutputFolder(tmp_path / "out", {}), batch_size=1)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["x_a.png", "x_b.png", "x_whole.png"]


@pytest.mark.parametrize("structures", [["a b", "a/b", "a_b_0"], ["Disc", "disc"], ["overlay", "disc"]])
def test_files_of_structures_are_distinct(structures: list[str]) -> None:
    found = [SliceMasks(np.stack([np.full((2, 2), index == 0) for index in range(len(structures))]), None)]
    native = Native((np.zeros((2, 2), dtype=np.uint8),))
    files = mask_files("x", native, found, structures)
    assert len({name.lower() for name in files} - {"x_overlay.png"}) == len(structures)
    assert [np.asarray(Image.open(io.BytesIO(content))).any() for content in files.values()] == [
        index == 0 for index in range(len(structures))
    ]


def test_a_mask_of_another_input_is_not_overwritten(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path, {})
    out.put({"input": "x"}, {"x_a_b.png": b"x"})  # of structure a_b
    with pytest.raises(DataError, match="two inputs"):
        out.put({"input": "x_a"}, {"x_a_b.png": b"x_a"})  # of structure b
    assert (tmp_path / "x_a_b.png").read_bytes() == b"x"
    OutputFolder(tmp_path, {}).put({"input": "x_a"}, {"x_a_b.png": b"x_a"})  # a mask of an earlier prediction may be


def test_masks_are_not_written_among_the_images(model_path: str, tmp_path: Path, capsys) -> None:
    """The next prediction would read them as images."""
    folder = tmp_path / "in"
    folder.mkdir()
    picture(folder / "a.png")
    assert main(["predict", "--model", model_path, "--input", str(folder), "--out", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("fedfms: --out: it is the folder of the images")
    assert [path.name for path in folder.iterdir()] == ["a.png"]


def test_an_unreadable_file_of_a_folder_is_reported_and_the_others_are_predicted(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "in" / "out"
    (folder / "more").mkdir(parents=True)
    picture(folder / "a.png")
    picture(folder / "a.jpg", seed=1)
    (folder / "jane_doe.png").write_bytes(b"no image")
    nibabel.save(nibabel.Nifti1Image(np.arange(60.0).reshape(3, 4, 5), np.eye(4)), folder / "more" / "v.nii.gz")
    (folder / "notes.txt").write_text("no image")
    command = ["predict", "--model", model_path, "--input", str(folder), "--out", str(out), "--overlay"]
    for _ in range(2):  # the second time it overwrites its own files, and does not read them as inputs
        assert main(command) == 1
        output = capsys.readouterr()
        assert "input 3 of 4: the image cannot be read" in output.err and "jane" not in output.err + output.out
        assert "3 of 4 inputs, 7 slices" in " ".join(output.out.split())
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {"a.png_mask.png", "a.jpg_mask.png", "a.png_overlay.png", "more/v_mask.nii.gz"} <= files
    line = json.loads((out / "predictions.jsonl").read_text().splitlines()[1])
    assert line["input"] == "a.jpg" and set(line["pixels"]) == {"disc", "cup"}
    assert Image.open(out / "a.png_overlay.png").size[0] == 140


def test_a_foreign_file_is_not_overwritten(model_path: str, tmp_path: Path, capsys) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a_mask.png").write_bytes(b"mine")
    assert main(["predict", "--model", model_path, "--input", str(tmp_path / "a.png"), "--out", str(tmp_path)]) == 1
    assert "were not written by a prediction" in capsys.readouterr().err
    assert (tmp_path / "a_mask.png").read_bytes() == b"mine"


@pytest.mark.parametrize("record", ["no json\n", "{}\n", '{"format": 1, "files": ["../a.png"]}\n'])
def test_a_foreign_record_is_rejected(record: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text(record)
    with pytest.raises(DataError, match="was not written by `fedfms predict`"):
        OutputFolder(tmp_path, {})


def test_errors_are_one_line_without_names(model_path: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "jane_doe.txt").touch()
    (tmp_path / "jane_file").touch()
    picture(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    for source, out, message in (
        ("jane_doe.txt", "out", "neither an image nor a NIfTI volume"),
        ("jane_none.png", "out", "no such file or folder"),
        ("empty", "out", "contains no image or volume"),
        ("a.png", "jane_file/out", "cannot write to the output folder"),
        ("jane" * 99, "out", "File name too long"),
        ("a.png", "jane" * 99, "File name too long"),
        ("a.png", "out --window 40 0", "--window: "),
        ("a.png", "out --set train.lr=1", "--set: "),
    ):
        out, *more = out.split(" ")
        command = ["predict", "--model", model_path, "--input", str(tmp_path / source), "--out", str(tmp_path / out)]
        assert main([*command, *more]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and "jane" not in error


def test_a_damaged_volume_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "v.nii.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(Fault):
        find_inputs(tmp_path / "v.nii.gz", InputRule(), tmp_path)[0].read()
