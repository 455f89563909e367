"""PanNuke: an imitation of its folds, whose tissues are the sites."""

import numpy as np
import pytest

from fedfms.errors import DataError
from fedfms.preprocessing.images import Fault
from tests.preprocessing.make import as_sent
from tests.preprocessing.nuclei_layouts import tnbc
from tests.preprocessing.test_nuclei import recipe


def pannuke(folder, fold=1, dtype=np.float64, types=("Adrenal_gland", "Bile-duct", "Breast", "Adrenal_gland")):
    """A fold of PanNuke as published, with small patches that all differ."""
    random = np.random.default_rng(fold)
    images = random.integers(0, 256, (len(types), 8, 9, 3)).astype(dtype)
    masks = np.zeros((len(types), 8, 9, 6), dtype)
    for number in range(len(types)):
        masks[number, number, 2:5, number % 5] = 7 + number  # number of an instance
    masks[..., 5] = masks[..., :5].sum(axis=-1) == 0
    place = folder / f"Fold {fold}"
    for kind in ("images", "masks"):
        (place / kind / f"fold{fold}").mkdir(parents=True)
    np.save(place / "images" / f"fold{fold}" / "images.npy", images)
    np.save(place / "images" / f"fold{fold}" / "types.npy", np.array(types))
    np.save(place / "masks" / f"fold{fold}" / "masks.npy", masks)
    return images, masks


@pytest.mark.parametrize("dtype", [np.float64, np.uint8])
def test_pannuke_by_tissue(tmp_path, dtype):
    raw = tmp_path / "raw"
    first = pannuke(raw / "PanNuke", 1, dtype)
    second = pannuke(raw / "PanNuke", 2, dtype, types=("Uterus", "Adrenal_gland"))
    tnbc(raw / "TNBC")
    chosen = as_sent(recipe())
    assert chosen.sites(raw) == [
        "Adrenal_gland",
        "Bile-duct",
        "TNBC",
        "Uterus",
    ]  # Breast is not in the paper
    found = chosen.find(raw, "Adrenal_gland")
    assert sorted(found.cases) == ["fold1/00000", "fold1/00003", "fold2/00001"]
    assert len({case.patient for case in found.cases.values()}) == 3
    for name, (images, masks) in (("fold1/00003", first), ("fold2/00001", second)):
        case = found.cases[name]
        ((image, label),) = chosen.read(case).slices
        assert (image == images[case.part]).all()
        assert (label == (masks[case.part, ..., :5].max(axis=2) > 0)).all()
        assert (label.sum(), image.dtype, label.dtype) == (3, np.uint8, np.uint8)
    assert [len(chosen.find(raw, site).cases) for site in ("Bile-duct", "Uterus", "Esophagus")] == [1, 1, 0]


def test_other_tissues_and_spellings(tmp_path):
    pannuke(tmp_path / "P", types=("Breast", "Adrenal Gland", "HeadNeck"))
    chosen = recipe("--tissues", "Breast, adrenal_gland")
    assert chosen.sites(tmp_path) == ["Breast", "adrenal_gland"]
    assert [len(chosen.find(tmp_path, site).cases) for site in chosen.sites(tmp_path)] == [1, 1]
    for text in ("", ",", "../x", ".x"):
        with pytest.raises(SystemExit):
            recipe("--tissues", text)


def test_pannuke_is_memory_mapped(tmp_path):
    from fedfms.preprocessing.nuclei_pannuke import _memory_map

    pannuke(tmp_path / "P")
    assert isinstance(_memory_map(next(tmp_path.rglob("images.npy"))), np.memmap)


class _Danger:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemError('ran')",))


def test_pickled_types_are_not_read(tmp_path):
    pannuke(tmp_path / "P")
    path = next(tmp_path.rglob("types.npy"))
    for array in (np.array([_Danger()], dtype=object), np.array(["Uterus"] * 4, dtype=object)):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(DataError, match="pickled") as caught:
            recipe().sites(tmp_path)
        assert "astype(str)" in caught.value.line()
        assert str(tmp_path) not in caught.value.line()


def test_a_link_out_of_the_raw_folder_is_not_opened(tmp_path):
    pannuke(tmp_path / "raw" / "P")
    path = next((tmp_path / "raw").rglob("types.npy"))
    path.rename(tmp_path / "elsewhere.npy")
    path.symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(Fault, match="out of the raw folder"):
        recipe().find(tmp_path / "raw", "Uterus")


def test_incomplete_folds_are_errors(tmp_path):
    pannuke(tmp_path / "P")
    pannuke(tmp_path / "copy")
    with pytest.raises(DataError, match="one name"):
        recipe().sites(tmp_path)
    next((tmp_path / "copy").rglob("masks.npy")).unlink()
    with pytest.raises(DataError, match="lacks"):
        recipe().sites(tmp_path)
    next((tmp_path / "copy").rglob("types.npy")).unlink()
    np.save(next((tmp_path / "P").rglob("types.npy")), np.array(["Uterus"] * 5))
    with pytest.raises(DataError, match="different lengths"):
        recipe().find(tmp_path, "Uterus")


BAD_PATCHES = {
    "nuclei as background": (lambda i, m: (i, np.where(np.arange(6) == 5, m.max(-1, keepdims=True), m)), "background"),
    "five channels": (lambda i, m: (i, m[..., :5]), "H x W x 6"),
    "another size": (lambda i, m: (i, m[:, :4]), "H x W x 6"),
    "0..1": (lambda i, m: (i / 255, m), "whole numbers"),
    "NaN": (lambda i, m: (np.where(i < 999, np.nan, i), m), "outside"),
    "above 255": (lambda i, m: (i * 9, m), "outside"),
}


@pytest.mark.parametrize("case", BAD_PATCHES)
def test_impossible_patches_are_faults(tmp_path, case):
    change, message = BAD_PATCHES[case]
    images, masks = pannuke(tmp_path / "P")
    for name, array in zip(("images.npy", "masks.npy"), change(images, masks), strict=True):
        np.save(next(tmp_path.rglob(name)), array)
    with pytest.raises(Fault, match=message):
        recipe().read(recipe().find(tmp_path, "Bile-duct").cases["fold1/00001"])


def test_a_truncated_array_is_an_error(tmp_path):
    pannuke(tmp_path / "P")
    case = recipe().find(tmp_path, "Bile-duct").cases["fold1/00001"]
    path = next(tmp_path.rglob("masks.npy"))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(Fault, match="cut short"):
        recipe().read(case)
    with pytest.raises(DataError, match="cut short"):
        recipe().find(tmp_path, "Bile-duct")
