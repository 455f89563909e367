"""Generated NIfTI volumes for tests, in the layouts in which data sets are published."""

import nibabel as nib
import numpy as np
import pytest

from fedfms.preprocessing.images import Fault
from fedfms.preprocessing.recipe import RawCase
from fedfms.preprocessing.volumes import ValueRule, VolumeReader
from tests.preprocessing.make import CANARY

READ = VolumeReader(ValueRule({1: 1, 2: 2}))
SHAPE = (20, 24, 9)
AFFINE = np.array([[-0.5, 0, 0, 7], [0, 0.625, 0, -11.25], [0, 0, 3, 2.5], [0, 0, 0, 1]])


def scan(shape=SHAPE, kind=np.float32, top=1000.0, seed=0):
    """Intensities of `shape` in 0..top, a different one in every voxel."""
    values = np.random.default_rng(seed).permutation(np.linspace(0, top, int(np.prod(shape))))
    return values.reshape(shape).astype(kind)


def truth(shape=SHAPE, values=(1,)):
    """A label (X, Y, Z), uint8: boxes of different sizes side by side, away from the ends of the volume."""
    label = np.zeros(shape, np.uint8)
    for number, value in enumerate(values):
        label[3 + 4 * number : 6 + 4 * number, 5 : 12 + number, 2 : shape[2] - 3] = value
    return label


def put(path, array, affine=AFFINE, marker=CANARY, image_class=nib.Nifti1Image):
    """Write a NIfTI file with the marker in its free header fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image_class(array, affine)
    fields = ("descrip", "aux_file", "intent_name")
    for field in (*fields, "db_name") if image_class is nib.Nifti1Image else fields:
        image.header[field] = marker.encode()[:15]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", marker.encode()))
    nib.save(image, path)
    return path


def pair(folder, stem, image=None, label=None, ending=".nii.gz", affine=AFFINE):
    """Write a volume and its segmentation to `images/` and `labels/`."""
    image, label = scan() if image is None else image, truth() if label is None else label
    return (
        put(folder / "images" / f"{stem}{ending}", image, affine),
        put(folder / "labels" / f"{stem}{ending}", label, affine),
    )


def case_of(image, label):
    """A case with the canary as every name."""
    return RawCase(CANARY, CANARY, {"image": image, "label": label})


def made(tmp_path, image=None, label=None, **more):
    """`case_of` a volume and a segmentation that are written to `tmp_path`."""
    return case_of(*pair(tmp_path, CANARY, image, label, **more))


def fault_of(case, read=READ):
    """The text of the fault that reading raises, checked to be one line without canary and path."""
    with pytest.raises(Fault) as caught:
        read(case)
    for text in (str(caught.value), repr(caught.value)):
        assert CANARY not in text
        assert str(case.files["image"].parent) not in text
        assert "\n" not in text
    return str(caught.value)
