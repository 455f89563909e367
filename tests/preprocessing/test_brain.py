"""The brain data set, on an imitation of the layout of FeTS 2022."""

import numpy as np
import pytest

from fedfms.data.volume import to_nifti
from fedfms.errors import DataError
from fedfms.preprocessing import brain
from fedfms.preprocessing.images import Fault
from tests.preprocessing.make import CANARY, as_sent, options
from tests.preprocessing.volume_layouts import put, scan, truth

SHAPE = (14, 16, 23)
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 15], [0, 0, 1, 0], [0, 0, 0, 1]])
ROWS = {"1": (0, 1, 2), "6": (3,), "18": (4,), "21": (5,), "4": (6,)}


def name_of(number):
    return f"FeTS2022_{number:05}"


def subject(folder, name, label=None, ending=".nii.gz"):
    """One subject: four modalities and a segmentation of 1, 2 and 4."""
    for kind in ("t1", "t2", "flair", "t1ce"):
        put(folder / name / f"{name}_{kind}{ending}", scan(SHAPE, np.int16, seed=len(kind)), AFFINE)
    put(folder / name / f"{name}_seg{ending}", truth(SHAPE, (1, 2, 4)) if label is None else label, AFFINE)


def table(folder, rows, name="partitioning_1.csv", columns="Partition_ID,Subject_ID"):
    lines = [f"{site},{one}" for site, ones in rows.items() for one in ones]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([columns, *lines]) + "\n", encoding="utf-8-sig")


@pytest.fixture(params=[".", "MICCAI_FeTS2022_TrainingData"])
def raw(tmp_path, request):
    """The folder of the challenge, unpacked into --raw or below it."""
    folder = tmp_path / request.param
    table(folder, {site: [name_of(number) for number in numbers] for site, numbers in ROWS.items()})
    for numbers in ROWS.values():
        for number in numbers:
            subject(folder, name_of(number))
    return tmp_path


def base(raw):
    return next(raw.rglob("partitioning_1.csv")).parent


def test_sites_come_from_the_table(raw):
    recipe = options(brain)
    assert recipe.sites(raw) == ["1", "6", "18", "21"]
    assert options(brain, "--institutions", "all").sites(raw) == ["1", "4", "6", "18", "21"]
    for site, numbers in ROWS.items():
        found = as_sent(recipe).find(raw, site)
        assert sorted(found.cases) == [name_of(number) for number in numbers]
        assert (found.faults, found.ignored) == ((), 0)
        assert all(case.patient == name == case.name for name, case in found.cases.items())
        assert {path.name for case in found.cases.values() for path in case.files.values()} == {
            f"{name_of(number)}_{kind}.nii.gz" for number in numbers for kind in ("t1ce", "seg")
        }


def one_case(raw, *arguments):
    recipe = options(brain, *arguments)
    return recipe, recipe.read(recipe.find(raw, "6").cases[name_of(3)])


def test_defaults(raw):
    recipe, done = one_case(raw)
    stored = truth(SHAPE, (1, 2, 4))
    assert (recipe.dataset, [(one.name, one.value) for one in recipe.structures]) == (
        "brain", [("enhancing-tumour", 1)],
    )  # fmt: skip
    marked = (stored == 4).any(axis=(0, 1))
    assert done.volume.positions == tuple(i for i in range(SHAPE[2]) if marked[i] or i % 5 == 0)
    assert 0 < marked.sum() < len(done.slices) < SHAPE[2]
    assert all(image.shape == (*SHAPE[:2], 3) for image, _ in done.slices)
    first, last = done.slices[0][0], done.slices[-1][0]
    np.testing.assert_array_equal(first[..., 0], first[..., 1])
    assert (last[..., 1] != last[..., 2]).any()
    back = to_nifti(done.volume, [values for _, values in done.slices])
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), stored == 4)
    np.testing.assert_array_equal(back.affine, AFFINE)


def test_options(raw):
    recipe, done = one_case(raw, "--channels", "single", "--empty-every", "1", "--structure", "core")
    assert recipe.dataset == "brain-core"
    assert recipe.options == {
        "structure": "core", "channels": "single", "empty-every": "1", "depth": "coarsest", "partition": "1",
    }  # fmt: skip
    assert done.volume.positions == tuple(range(SHAPE[2]))
    assert all(image.shape == SHAPE[:2] for image, _ in done.slices)
    stored = truth(SHAPE, (1, 2, 4))
    np.testing.assert_array_equal(np.stack([v for _, v in done.slices], axis=2), np.isin(stored, (1, 4)))
    for wrong in (("--empty-every", "0"), ("--empty-every", "x"), ("--channels", "two"), ("--partition", "3")):
        with pytest.raises(SystemExit):
            options(brain, *wrong)


def test_a_volume_without_the_structure_is_converted_and_other_values_are_a_fault(raw):
    folder = base(raw)
    subject(folder, name_of(3), truth(SHAPE, (1, 2)))
    _, done = one_case(raw)
    assert done.volume.positions == (0, 5, 10, 15, 20)
    subject(folder, name_of(3), truth(SHAPE, (1, 2, 3)))
    with pytest.raises(Fault, match=r"values \[3\] that the label rule does not name"):
        one_case(raw)


def test_the_second_table(raw):
    table(base(raw), {"33": [name_of(0)]}, "partitioning_2.csv")
    recipe = options(brain, "--partition", "2", "--institutions", "all")
    assert recipe.sites(raw) == ["33"]
    found = recipe.find(raw, "33")
    assert (list(found.cases), found.ignored) == ([name_of(0)], 6)  # the others are not in this table


def test_incomplete_subjects_are_faults(raw):
    folder = base(raw)
    names = {site: [name_of(number) for number in numbers] for site, numbers in ROWS.items()}
    names["1"] += ["FeTS2022_09999", "../outside", "..", name_of(4)]
    table(folder, names)
    (folder / name_of(0) / f"{name_of(0)}_seg.nii.gz").unlink()
    (folder / name_of(1) / f"{name_of(1)}_t1ce.nii.gz").unlink()
    put(folder / name_of(2) / f"{name_of(2)}_seg.nii", truth(SHAPE), AFFINE)
    subject(folder, "FeTS2022_00777")
    subject(folder.parent, "outside")
    found = options(brain).find(raw, "1")
    assert (found.cases, found.ignored) == ({}, 1)
    nothing = "the table names a case without files"
    assert dict(found.faults) == {
        name_of(0): "the volume has no segmentation",
        name_of(1): "the segmentation has no volume",
        name_of(2): "several files of this name",
        name_of(4): "partitioning_1.csv names the case 2 times",
        "FeTS2022_09999": nothing,
        "../outside": nothing,
        "..": nothing,
    }
    assert dict(options(brain).find(raw, "18").faults) == {name_of(4): "partitioning_1.csv names the case 2 times"}


def test_missing_wrong_and_double_tables_are_errors(tmp_path):
    recipe = options(brain)
    with pytest.raises(DataError, match="no partitioning_1.csv"):
        recipe.sites(tmp_path)
    table(tmp_path / "a", {"1": [CANARY]}, columns=f"Institution,{CANARY}")
    with pytest.raises(DataError, match="no columns Partition_ID and Subject_ID") as caught:
        recipe.sites(tmp_path)
    assert CANARY not in str(caught.value)
    table(tmp_path / "b", {"1": ["x"]})
    with pytest.raises(DataError, match="2 files"):
        recipe.sites(tmp_path)


def test_a_table_outside_of_raw_is_not_read(tmp_path):
    table(tmp_path / "away", {"1": ["x"]})
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "partitioning_1.csv").symlink_to(tmp_path / "away" / "partitioning_1.csv")
    with pytest.raises(Fault, match="out of the raw folder"):
        options(brain).sites(tmp_path / "raw")


def test_the_help_names_sites_and_every_default():
    about = " ".join((brain.__doc__ or "").split())
    assert [site for site in brain.SITES if f'"{site}"' not in about] == []
    chosen = options(brain).options
    assert chosen == {
        "structure": "enhancing", "channels": "neighbours", "empty-every": "5", "depth": "coarsest", "partition": "1",
    }  # fmt: skip
    for name, value in chosen.items():
        assert f"--{name}" in about
        assert f"default {value}" in about
