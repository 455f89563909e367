"""The conversion engine on a fake data set: volumes, failing readers, leaks of names, links out of the raw folder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fedfms.data.manifest import Volume, load_manifest
from fedfms.errors import DataError
from fedfms.files import write_atomic
from fedfms.preprocessing.check import check_site
from fedfms.preprocessing.convert import convert_site, list_sites
from fedfms.preprocessing.images import Fault
from fedfms.preprocessing.recipe import Found, RawCase
from tests.preprocessing import fake
from tests.preprocessing.make import CANARY, convert_pairs


@pytest.fixture
def volumes(tmp_path):
    """A raw folder of six volumes of three patients."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(6):
        (raw / f"{CANARY}{number % 3}-{number}.txt").write_text("good")
    return raw


def _convert(raw, out, workers=0, **changes):
    return convert_site(raw, out, "s", dataclasses.replace(fake.RECIPE, **changes), workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_slices_of_volumes_can_be_reassembled(volumes, out, workers):
    summary = _convert(volumes, out, workers)
    assert (summary.cases, summary.slices, summary.patients, summary.faults) == (6, 18, 3, ())
    folder = out / "fake" / "s"
    assert check_site(folder) == []
    manifest = load_manifest(folder)
    assert manifest.options == {"depth": "third axis"}
    links = json.loads((volumes / ".fedfms-keys" / "fake-s.json").read_text())["links"]
    for case in manifest.cases:
        link = links[case.id]
        assert (link["volume"], link["part"]) == (f"{link['name']}.txt", "1")
        assert case.volume == Volume(fake.SHAPE, fake.AFFINE, fake.AXIS, fake.POSITIONS)
        assert [s.image for s in case.slices] == [f"images/{case.id}_{k}.png" for k in range(3)]
        voxels = fake.array(link["name"])
        for slice_, position in zip(case.slices, case.volume.positions, strict=True):
            assert (np.asarray(Image.open(folder / slice_.image)) == voxels[:, :, position]).all()


def test_a_second_run_does_not_rewrite_slices_and_removes_stale_ones(volumes, out):
    _convert(volumes, out)
    written = {p: p.stat().st_mtime_ns for p in out.rglob("*_[0-9]*.*")}
    next(volumes.glob("*.txt")).write_text("fault")
    summary = _convert(volumes, out)
    left = {p: p.stat().st_mtime_ns for p in out.rglob("*_[0-9]*.*")}
    assert (len(written), len(left), len(summary.faults)) == (36, 30, 1)
    assert left.items() <= written.items()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fault", "the volume is 4D"),
        ("crash", "the case cannot be read: damaged, or of another kind (ValueError)"),
        ("memory", "the case cannot be read: damaged, or of another kind (MemoryError)"),
        ("none", "it has no slices"),
        ("value", "slice 1 has label values [9] that no structure has"),
        ("label type", "slice 1 is not of 8 bits"),
        ("image type", "slice 1 is not of 8 bits"),
        ("channels", "slice 1 is not of 8 bits"),
        ("size", "slice 1: image and mask differ in size"),
        ("all sizes", "slice 1 does not have the size of the volume's other two axes"),
        ("positions", "the volume has 2 positions for 3 slices"),
        ("affine", "the volume's affine is not finite"),
    ],
)
def test_an_error_of_a_reader_is_a_fault_of_one_case(volumes, out, capfd, caplog, kind, message):
    (volumes / f"{CANARY}1-1.txt").write_text(kind)
    summary = _convert(volumes, out)
    [(case, text)] = summary.faults
    assert text.startswith(message)
    assert summary.cases == 5
    links = json.loads((volumes / ".fedfms-keys" / "fake-s.json").read_text())["links"]
    assert links[case]["name"] == f"{CANARY}1-1"
    assert CANARY not in str(summary) + "".join(capfd.readouterr()) + caplog.text
    assert check_site(out / "fake" / "s") == []


@pytest.mark.slow
def test_worker_processes_report_the_same_faults(volumes, out, capfd):
    for number, kind in enumerate(["fault", "crash", "memory"]):
        (volumes / f"{CANARY}{number}-{number}.txt").write_text(kind)
    summary = _convert(volumes, out, workers=2)
    assert summary.cases == 3
    assert summary.faults == _convert(volumes, out).faults
    assert CANARY not in str(summary) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError(CANARY), "site s: the raw folder does not have the layout of fake .KeyError."),
        (PermissionError(13, "Permission denied", CANARY), "site s: the raw folder cannot be read: Permission denied"),
        (Fault("the table has no column of names"), "site s: the table has no column of names"),
        (DataError("no partition", do="name it"), "^no partition; name it"),
    ],
)
def test_an_error_of_the_search_is_one_line(volumes, out, error, message):
    def fail(*_):
        raise error

    with pytest.raises(DataError, match=message) as caught:
        _convert(volumes, out, find=fail)
    assert CANARY not in str(caught.value)
    assert not out.exists()
    with pytest.raises(DataError) as caught:
        list_sites(volumes, dataclasses.replace(fake.RECIPE, sites=fail))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b"])
def test_a_site_that_cannot_be_a_folder_is_an_error(volumes, name):
    with pytest.raises(DataError, match="the folder of a site has a name that is not allowed"):
        list_sites(volumes, dataclasses.replace(fake.RECIPE, sites=lambda raw: ["good", name]))


def _outside(tmp_path, volumes, how):
    """A path that leads out of the raw folder."""
    away = tmp_path / CANARY / "away.txt"
    away.parent.mkdir()
    away.write_text("good")
    if how == "dots":
        return volumes / ".." / CANARY / "away.txt"
    if how == "absolute":
        return away
    path = volumes / "link"
    path.symlink_to({"file": away, "folder": away.parent, "circle": path}.get(how, away))
    if how == "link in a folder":
        (volumes / "sub").mkdir()
        path.rename(volumes / "sub" / "link")
        return volumes / "sub"
    return path / "away.txt" if how == "folder" else path


@pytest.mark.parametrize("how", ["dots", "absolute", "file", "folder", "link in a folder", "circle"])
def test_no_file_outside_the_raw_folder_is_opened(tmp_path, volumes, out, how):
    path = _outside(tmp_path, volumes, how)

    def find(raw, site):
        cases = dict(fake.find(raw, site).cases)
        return Found({**cases, "x": RawCase("x", "x", {"volume": path})})

    summary = _convert(volumes, out, find=find)
    [(_, text)] = summary.faults
    looped = "one of its files cannot be accessed"
    assert text == (looped if how == "circle" else f"{_LEADS}; put the file itself there")
    assert summary.cases == 6


_LEADS = "a link or `..` leads out of the raw folder"


def test_links_within_the_raw_folder_and_to_it_are_followed(raw, out, tmp_path):
    path = raw / "images" / f"{CANARY}3.png"
    (raw / "store").mkdir()
    shutil.move(path, raw / "store" / "x.png")
    path.symlink_to(raw / "store" / "x.png")
    (tmp_path / "share").symlink_to(raw)
    assert convert_pairs(tmp_path / "share", out) == 0
    assert len(load_manifest(out / "d" / "s").cases) == 6


def test_a_link_to_a_folder_is_a_fault(raw, out, tmp_path, capsys):
    shutil.copytree(raw / "images", tmp_path / "more")
    (raw / "images" / f"{CANARY}more").symlink_to(tmp_path / "more")
    assert convert_pairs(raw, out) == 1
    shown = "".join(capsys.readouterr())
    assert shown.count("a link to a folder is not followed") == 1
    assert CANARY not in shown
    assert len(load_manifest(out / "d" / "s").cases) == 6


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", CANARY), PermissionError(13, "Denied", CANARY)]
)
def test_a_failed_write_stops_the_site_with_one_line(volumes, out, monkeypatch, error):
    """Slices that were written before remain for the next run."""
    count = 0

    def write(path, content, **more):
        nonlocal count
        count += 1
        if count > 8:
            raise error
        write_atomic(path, content, **more)

    with monkeypatch.context() as patch:
        patch.setattr("fedfms.preprocessing.target.write_atomic", write)
        with pytest.raises(DataError, match=f"^site s: cannot write: {error.strerror}; check disk space") as caught:
            _convert(volumes, out)
    assert CANARY not in str(caught.value)
    written = {p: p.stat().st_mtime_ns for p in out.rglob("*_[0-9]*.*")}
    assert len(written) == 8
    assert not list(out.rglob("manifest.json"))
    assert _convert(volumes, out).cases == 6
    assert written.items() <= {p: p.stat().st_mtime_ns for p in out.rglob("*_[0-9]*.*")}.items()
