"""The polyp recipe: its patient rule, and (where they are) the real images of seven hospitals."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedfms.data import open_site
from fedfms.data.manifest import load_manifest
from fedfms.settings import SiteSettings
from fedfms.study import load_study
from preprocessing import polyp
from preprocessing.check import check_site
from preprocessing.cli import main
from preprocessing.convert import convert_site

REPO = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("site", "one", "two", "same"),
    [
        ("polypgen_c1_paris_fr", "176OLCV1_100H0002", "176OLCV1_100H0255", True),
        ("polypgen_c1_paris_fr", "176OLCV1_100H0002", "177OLCV1_100H0014", False),
        ("polypgen_c2_padova_it", "EndoCV2021_001000", "EndoCV2021_001004", False),
        ("cvc_clinicdb_barcelona_es", "1", "25", True),
        ("cvc_clinicdb_barcelona_es", "25", "26", False),
        ("cvc_clinicdb_barcelona_es", "592", "612", True),
        ("kvasir_seg_vestreviken_no", "cju1", "cju2", False),
    ],
)
def test_patient_rule(site, one, two, same):
    assert (polyp.patient(site, one) == polyp.patient(site, two)) == same


def test_clinicdb_has_29_sequences_of_612_frames():
    ends = polyp.CLINICDB_LAST_FRAMES
    assert (len(ends), ends[-1], list(ends)) == (29, 612, sorted(set(ends)))
    assert len({polyp.patient("cvc_clinicdb_barcelona_es", str(i)) for i in range(1, 613)}) == 29


@pytest.mark.parametrize("stem", ["0", "613", "sub/12", "12a", ""])
def test_a_frame_of_no_known_sequence_is_no_patient_of_its_own(stem):
    assert polyp.patient("cvc_clinicdb_barcelona_es", stem) is None


def _link(source: Path, raw: Path, sites: tuple[str, ...]) -> Path:
    """A raw folder of links, so that the key files land in it and not beside the real images."""
    raw.mkdir()
    for site in sites:
        (raw / site).symlink_to(source / site)
    return raw


@pytest.mark.shared
def test_two_real_sites_in_processes(shared_polyp, tmp_path):
    raw = _link(shared_polyp, tmp_path / "raw", ("cvc_clinicdb_barcelona_es",))
    command = [
        sys.executable,
        "-m",
        "preprocessing",
        "polyp",
        "--raw",
        str(raw),
        "--out",
        str(tmp_path / "DATA"),
    ]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cvc_clinicdb_barcelona_es" in done.stdout
    manifest = load_manifest(tmp_path / "DATA" / "polyp" / "cvc_clinicdb_barcelona_es")
    assert (len(manifest.cases), len(manifest.patients)) == (56, 22)
    # the protocol is pinned: what the study says of it may change
    study = load_study(REPO / "jobs" / "studies" / "polyp.yaml", overrides=["data.protocol=held-out"])
    data = open_site(study, "cvc_clinicdb_barcelona_es", SiteSettings(data_root=tmp_path / "DATA"))
    train, val = ({i.patient for i in data.parts[part]} for part in ("train", "val"))
    assert not train & val
    assert 4 <= data.counts()["val"] <= 8


@pytest.mark.shared
def test_masks_are_where_the_originals_are(shared_polyp, tmp_path):
    """A few real pairs against a plain reading of the raw files."""
    site = "polypgen_c1_paris_fr"
    names = sorted(p.stem for p in (shared_polyp / site / "images").iterdir())[:5]
    raw = tmp_path / "raw" / site
    for part, suffix in (("images", ""), ("labels", "_mask")):
        (raw / part).mkdir(parents=True)
        for name in names:
            shutil.copy(shared_polyp / site / part / f"{name}{suffix}.jpg", raw / part)
    convert_site(raw, raw.parent, tmp_path / "out", site, polyp.RECIPE, workers=0)
    folder = tmp_path / "out" / "polyp" / site
    found = {s.image_sha256: s for _, _, s in load_manifest(folder).slices()}
    from fedfms.data.manifest import pixel_sha256

    for name in names:
        image = np.asarray(Image.open(raw / "images" / f"{name}.jpg").convert("RGB"))
        mask = np.asarray(Image.open(raw / "labels" / f"{name}_mask.jpg").convert("L")) > 127
        slice_ = found[pixel_sha256(image)]
        assert (np.asarray(Image.open(folder / slice_.label)) == mask).all()


@pytest.mark.shared
@pytest.mark.slow
def test_all_real_sites(shared_polyp, tmp_path, capsys):
    raw = _link(shared_polyp, tmp_path / "raw", polyp.SITES)
    assert main(["polyp", "--raw", str(raw), "--out", str(tmp_path / "DATA")]) == 0
    empty = {}
    for site in polyp.SITES:
        folder = tmp_path / "DATA" / "polyp" / site
        manifest = load_manifest(folder)
        assert len(manifest.cases) == 56
        assert {value for _, _, s in manifest.slices() for value in s.values} <= {0, 1}
        empty[site] = sum(s.values == (0,) for _, _, s in manifest.slices())
        assert check_site(folder) == []
    found = {site: count for site, count in empty.items() if count}
    assert found == {"polypgen_c2_padova_it": 8, "polypgen_c5_oxford_uk": 1, "polypgen_c6_alexandria_eg": 3}


@pytest.mark.shared
def test_real_defects(shared_polyp, tmp_path, capsys):
    """ClinicDB's original TIFFs, which Pillow does not open, are faults and not a stack trace."""
    source = shared_polyp.parent / "_edge_cases"
    if not source.is_dir():
        pytest.skip("needs data/_edge_cases beside the checkout")
    raw = _link(source, tmp_path / "raw", ("clinicdb_tif_pillow_cannot_open", "polyp_empty_mask"))
    assert main(["polyp", "--raw", str(raw), "--out", str(tmp_path / "DATA"), "--workers", "0"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("cannot be read") == 2
    assert len(load_manifest(tmp_path / "DATA" / "polyp" / "polyp_empty_mask").cases) == 2
