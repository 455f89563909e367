"""Volumes: find, check and cut them."""

import gzip
import pickle

import nibabel as nib
import numpy as np
import pytest

from fedfms.data.intensity import eight_bits
from fedfms.data.manifest import LabelClass, load_manifest
from fedfms.data.volume import depth_axis, to_nifti
from fedfms.preprocessing.check import check_site
from fedfms.preprocessing.convert import convert_site
from fedfms.preprocessing.images import Fault
from fedfms.preprocessing.recipe import Recipe
from fedfms.preprocessing.volumes import ValueRule, VolumeReader, find_volumes, volume_sites
from tests.preprocessing.make import CANARY, as_sent
from tests.preprocessing.volume_layouts import AFFINE, READ, SHAPE, fault_of, made, pair, put, scan, truth


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, ">i2", np.uint16, np.float32, ">f4", np.float64])
def test_slices_match_the_array(tmp_path, ending, kind):
    stored, label = scan(kind=kind, top=250), truth(values=(1, 2))
    done = READ(made(tmp_path, stored, label, ending=ending))
    assert done.volume.shape == SHAPE
    assert (done.volume.axis, done.volume.positions) == (2, tuple(range(9)))
    np.testing.assert_array_equal(np.reshape(done.volume.affine, (4, 4)), AFFINE)
    high = np.percentile(stored, 99)
    for position, (image, values) in enumerate(done.slices):
        due = np.minimum(stored[:, :, position], high).astype(float) / high * 255
        assert image.dtype == np.uint8
        assert np.abs(image - due).max() <= 0.51
        np.testing.assert_array_equal(values, label[:, :, position])
    assert done.volume.fault([values.shape for _, values in done.slices]) == ""
    images = np.stack([image for image, _ in done.slices])
    assert (images.min(), images.max()) == (0, 255)


def test_image_and_segmentation_must_match(tmp_path):
    wrong = truth((20, 24, 10))
    assert fault_of(made(tmp_path, None, wrong)) == "volume 20 x 24 x 9 and segmentation 20 x 24 x 10 differ in size"
    case = made(tmp_path)
    moved = AFFINE.copy()
    moved[1, 3] += 0.0009
    put(case.files["label"], truth(), moved)
    READ(case)
    moved[1, 3] += 0.0011
    put(case.files["label"], truth(), moved)
    assert "different places in space" in fault_of(case)
    put(case.files["label"], truth(), AFFINE * [-1, 1, 1, 1])
    assert "different places in space" in fault_of(case)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (3, np.uint8, "values [3] that the label rule does not name"),
        (-1, np.int16, "values from -1 to 1, not within 0..255"),
        (300, np.int16, "values from 0 to 300, not within 0..255"),
        (1.5, np.float32, "values that are not whole numbers"),
        (1e30, np.float64, "not within 0..255"),
    ],
)
def test_label_values_outside_of_the_rule_are_faults(tmp_path, value, kind, text):
    label = truth().astype(kind)
    label[0, 0, 0] = value
    assert text in fault_of(made(tmp_path, None, label))


def test_label_rules():
    stored = np.array([[[0, 1, 2, 4]]], np.uint8)
    assert ValueRule({1: 0, 2: 0, 4: 1})(stored).tolist() == [[[0, 0, 0, 1]]]
    assert ValueRule({}, above_zero=1)(stored).tolist() == [[[0, 1, 1, 1]]]
    assert ValueRule({4: 2}, above_zero=1)(stored.astype(np.float64) * 0.9999999).tolist() == [[[0, 1, 1, 2]]]
    assert ValueRule({}, above_zero=1, required=False)(stored * 0).tolist() == [[[0, 0, 0, 0]]]
    with pytest.raises(Fault, match="shows no structure"):
        ValueRule({}, above_zero=1)(stored * 0)
    with pytest.raises(Fault, match="so it is an image"):
        ValueRule({}, above_zero=1)(np.arange(10, dtype=np.uint8).reshape(1, 1, 10))


def test_intensity():
    array = np.concatenate((np.linspace(-50, 150, 1000), [9000.0])).reshape(1, 1, -1)
    pixels = eight_bits(array)
    high = np.percentile(array, 99)
    assert (pixels[0, 0, 0], pixels[0, 0, -1]) == (0, 255)
    assert pixels[0, 0, 500] == round((array[0, 0, 500] + 50) / (high + 50) * 255)
    assert eight_bits(np.array([[[-(2**31), 2**31 - 1]]], np.int32))[0, 0].tolist() == [0, 255]
    for empty in (np.full((3, 4, 5), 7.0), np.eye(200)[None, :, :]):
        with pytest.raises(Fault, match="one value"):
            eight_bits(empty)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1, 1, 3), 2), ((3, 1, 1), 0), ((1, 3, 1), 1), ((1, 1, 1), 2), ((1, 1, 0.995), 2), ((3, 3, 1), 1)],
)
def test_depth(spacing, axis, tmp_path):
    turned = np.diag([*spacing, 1]) @ np.eye(4)
    assert depth_axis(turned, "coarsest") == axis
    assert depth_axis(np.eye(4)[[1, 2, 0, 3]] @ turned, "coarsest") == axis  # axes in another order
    assert depth_axis(turned, "third") == 2
    label = truth(values=(1, 2))
    done = READ(made(tmp_path, None, label, affine=turned))
    assert (done.volume.axis, len(done.slices)) == (axis, SHAPE[axis])
    back = np.asanyarray(to_nifti(done.volume, [values for _, values in done.slices]).dataobj)
    np.testing.assert_array_equal(back, label)


def test_neighbours_and_fewer_empty_slices(tmp_path):
    case = made(tmp_path)
    plain = READ(case)
    done = VolumeReader(ValueRule({1: 1}), neighbours=True, empty_every=4)(case)
    assert done.volume.positions == (0, 2, 3, 4, 5, 8)
    for position, (image, values) in zip(done.volume.positions, done.slices, strict=True):
        around = [plain.slices[min(max(i, 0), 8)][0] for i in (position - 1, position, position + 1)]
        np.testing.assert_array_equal(image, np.stack(around, axis=-1))
        np.testing.assert_array_equal(values, plain.slices[position][1])
    back = np.asanyarray(to_nifti(done.volume, [values for _, values in done.slices]).dataobj)
    np.testing.assert_array_equal(back, truth())


def test_volumes_are_found_in_both_layouts(tmp_path):
    site = tmp_path / "a"
    pair(site, "Case00")
    pair(site, "sub/Case01", ending=".nii")
    put(site / "images" / "Case02.nii.gz", scan())
    put(site / "labels" / "Case02_Segmentation.NII.GZ", truth())
    put(site / "Case03.nii.gz", scan())
    put(site / "Case03_SEGMENTATION.nii.gz", truth())
    put(site / "images" / "x_segmentation.nii.gz", scan())  # a suffix has no meaning in images/
    put(site / "labels" / "x_segmentation.nii", truth())
    (site / "notes.txt").write_text("x")
    put(site / "deeper" / "Case09.nii.gz", scan())
    put(site / "._Case00.nii.gz", scan())
    found = find_volumes(tmp_path, "a")
    assert sorted(found.cases) == ["Case00", "Case02", "Case03", "sub/Case01"]
    assert found.faults == (
        ("x", "the segmentation has no volume"),
        ("x_segmentation", "the volume has no segmentation"),
    )
    assert found.ignored == 2
    for case in as_sent(found).cases.values():
        assert case.patient == case.name
        as_sent(READ)(case)
    assert volume_sites(tmp_path) == ["a"]
    assert volume_sites(site) == ["deeper"]  # images/ and labels/ are parts of a site


def test_files_that_make_no_case_are_faults(tmp_path):
    site = tmp_path / "a"
    pair(site, "both")
    put(site / "both.nii", scan())
    put(site / "images" / "image.nii.gz", scan())
    put(site / "labels" / "label.nii.gz", truth())
    (site / "labels" / "link").symlink_to(tmp_path)
    found = find_volumes(tmp_path, "a")
    assert found.cases == {}
    assert dict(found.faults) == {
        "both": "several files of this name",
        "image": "the volume has no segmentation",
        "label": "the segmentation has no volume",
        "labels/link": "a link to a folder is not followed; put the folder itself there",
    }
    with pytest.raises(FileNotFoundError):
        find_volumes(tmp_path, "nowhere")


def test_the_canary_does_not_leak(tmp_path):
    """From names and free header fields, neither into what is read nor into a reassembled volume."""
    case = made(tmp_path)
    assert CANARY.encode()[:15] in gzip.decompress(case.files["image"].read_bytes())
    done = READ(case)
    out = tmp_path / "out.nii"
    nib.save(to_nifti(done.volume, [values for _, values in done.slices]), out)
    for data in (pickle.dumps(done), repr(done).encode(), out.read_bytes()):
        assert CANARY.encode()[:15] not in data


@pytest.mark.slow
def test_the_canary_does_not_leak_from_a_conversion(tmp_path, capfd, caplog):
    """With a case of each defect, in worker processes."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    for number in range(2):
        pair(raw / "a", f"{CANARY}{number}", scan(seed=number))
    cut, _ = pair(raw / "a", f"{CANARY}-cut")
    cut.write_bytes(cut.read_bytes()[:300])
    pair(raw / "a", f"{CANARY}-4d", scan((*SHAPE, 2)))
    pair(raw / "a", f"{CANARY}-nan", np.where(scan() > 990, np.nan, scan()))
    pair(raw / "a", f"{CANARY}-value", None, truth(values=(1, 9)))
    pair(raw / "a", f"{CANARY}-size", None, truth((20, 24, 10)))
    put(raw / "a" / f"{CANARY}-alone.nii.gz", scan())
    recipe = Recipe("d", (LabelClass("structure", 1),), volume_sites, find_volumes, VolumeReader(ValueRule({1: 1})))
    done = convert_site(raw, out, "a", recipe, workers=2)
    assert (done.cases, done.slices, done.empty) == (2, 18, 10)
    assert len(done.faults) == 6
    manifest = load_manifest(out / "d" / "a")
    assert {(case.volume.shape, case.volume.axis, len(case.slices)) for case in manifest.cases} == {(SHAPE, 2, 9)}
    assert check_site(out / "d" / "a") == []
    shown = "".join(capfd.readouterr()) + caplog.text + repr(done)
    written = b"".join(str(path.relative_to(out)).encode() + path.read_bytes() for path in out.rglob("*.*"))
    assert CANARY[:15] not in shown
    assert CANARY.encode()[:15] not in written
