"""The polyp data set: its patient rule, and the real images of seven hospitals if they are available."""

import shutil

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from fedfms.data import open_site
from fedfms.data.manifest import load_manifest, pixel_sha256
from fedfms.preprocessing import polyp
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, load_study
from tests.preprocessing.make import copy_sites, main, options

SITES = (
    "cvc_clinicdb_barcelona_es",
    "kvasir_seg_vestreviken_no",
    "polypgen_c1_paris_fr",
    "polypgen_c2_padova_it",
    "polypgen_c3_aviano_it",
    "polypgen_c5_oxford_uk",
    "polypgen_c6_alexandria_eg",
)


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
def test_a_frame_without_a_known_sequence_has_no_patient(stem):
    assert polyp.patient("cvc_clinicdb_barcelona_es", stem) is None


def test_the_help_names_every_site():
    assert [site for site in (*SITES, *polyp.SITES) if site not in (polyp.__doc__ or "")] == []


def _first(source, raw, site, count):
    """Copy the first images of a real site with their masks."""
    for image in sorted((source / site / "images").iterdir())[:count]:
        for part in ("images", "labels"):
            (raw / site / part).mkdir(parents=True, exist_ok=True)
            for path in (source / site / part).glob(f"{image.stem}[._]*"):
                shutil.copyfile(path, raw / site / part / path.name)


@pytest.fixture(scope="module")
def first_frames(shared_polyp, tmp_path_factory):
    """(raw folder, data root) of five frames of every real site, some at full size, converted once."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out")
    for site in SITES:
        _first(shared_polyp, raw, site, 5)
    assert main(["polyp", "--raw", str(raw), "--out", str(out), "--workers", "0"]) == 0
    return raw, out


@pytest.mark.shared
def test_every_pair_of_every_real_site_is_found(shared_polyp):
    read = options(polyp)
    assert read.sites(shared_polyp) == sorted(SITES)
    found = [read.find(shared_polyp, site) for site in SITES]
    assert [(len(site.cases), site.faults) for site in found] == [(56, ())] * 7


@pytest.mark.slow
@pytest.mark.shared
def test_conversion_of_a_real_site_in_worker_processes(shared_polyp, tmp_path):
    site, root = "cvc_clinicdb_barcelona_es", tmp_path / "DATA"
    raw = copy_sites(shared_polyp, tmp_path / "raw", site)
    assert main(["polyp", "--raw", str(raw), "--out", str(root)]) == 0
    manifest = load_manifest(root / "polyp" / site)
    assert (manifest.counts["cases"], manifest.counts["patients"]) == (56, 22)
    # fixed, because the protocol of the study may change
    study = load_study(STUDIES / "polyp.yaml", overrides=["data.protocol=held-out"])
    data = open_site(study, site, SiteSettings(data_root=root))
    train, val = ({i.patient for i in data.parts[part]} for part in ("train", "val"))
    assert not train & val
    assert 4 <= data.counts()["val"] <= 8


@pytest.mark.slow
@pytest.mark.shared
def test_masks_match_the_originals(first_frames):
    """Converted masks against a direct reading of the raw files."""
    raw, out = first_frames
    site = "polypgen_c1_paris_fr"
    found = {s.image_sha256: s for _, _, s in load_manifest(out / "polyp" / site).slices()}
    for path in (raw / site / "images").iterdir():
        image = np.asarray(Image.open(path).convert("RGB"))
        mask = np.asarray(Image.open(raw / site / "labels" / f"{path.stem}_mask.jpg").convert("L")) > 127
        slice_ = found[pixel_sha256(image)]
        assert (np.asarray(Image.open(out / "polyp" / site / slice_.label)) == mask).all()


@pytest.mark.slow
@pytest.mark.shared
def test_frames_of_every_real_site(first_frames, capsys):
    _, out = first_frames
    for site in SITES:
        manifest = load_manifest(out / "polyp" / site)
        assert len(manifest.cases) == 5
        assert {value for _, _, s in manifest.slices() for value in s.values} <= {0, 1}
    assert main(["check", str(out)]) == 0


@pytest.mark.slow
@pytest.mark.shared
def test_real_defects(shared_polyp, tmp_path, capsys):
    """ClinicDB's TIFFs, which Pillow cannot open, have the pixels of the PNG copies; empty masks are converted."""
    source = shared_polyp.parent / "_edge_cases"
    if not source.is_dir():
        pytest.skip("needs data/_edge_cases next to the checkout")
    raw = copy_sites(source, tmp_path / "raw", "clinicdb_tif_pillow_cannot_open", "polyp_empty_mask")
    with pytest.raises(UnidentifiedImageError):
        Image.open(raw / "clinicdb_tif_pillow_cannot_open" / "images" / "1.tif")
    assert main(["polyp", "--raw", str(raw), "--out", str(tmp_path / "DATA"), "--workers", "0"]) == 0
    empty = load_manifest(tmp_path / "DATA" / "polyp" / "polyp_empty_mask")
    assert [s.values for _, _, s in empty.slices()] == [(0,), (0,)]
    folder = tmp_path / "DATA" / "polyp" / "clinicdb_tif_pillow_cannot_open"
    slices = [s for _, _, s in load_manifest(folder).slices()]
    assert [(s.width_px, s.height_px, s.channels, s.values) for s in slices] == [(384, 288, 3, (0, 1))] * 2
    copies = {p.stem: p for p in (shared_polyp / SITES[0] / "images").iterdir()}
    same = {pixel_sha256(np.asarray(Image.open(copies[n]).convert("RGB"))) for n in ("1", "100") if n in copies}
    assert same <= {s.image_sha256 for s in slices}
