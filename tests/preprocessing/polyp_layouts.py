"""Imitations of how the publishers lay out each polyp data set: each fills a raw folder and says, by site, how many
pairs and how many patients are in it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SHAPE = (10, 14)


def truth():
    """A label (H, W): a polyp neither in the middle nor symmetric."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 3:9] = 1
    return label


def pair(image, mask):
    """A frame and its mask."""
    for path, pixels in ((image, np.full((*SHAPE, 3), 90, np.uint8)), (mask, truth() * 255)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))


def kvasir(raw):
    """Kvasir-SEG: masks of the same names; boxes in JSON beside the folders."""
    folder = raw / "Kvasir-SEG"
    for stem in ("cju0", "cju1", "cju2"):
        pair(folder / "images" / f"{stem}.jpg", folder / "masks" / f"{stem}.jpg")
    (folder / "kavsir_bboxes.json").write_text("{}")
    return {"kvasir_seg_vestreviken_no": (3, 3)}


def clinicdb(raw):
    """ClinicDB's TIFFs, frames of two sequences."""
    folder = raw / "CVC-ClinicDB"
    for number in (24, 25, 26):
        pair(folder / "Original" / f"{number}.tif", folder / "Ground Truth" / f"{number}.tif")
    return {"cvc_clinicdb_barcelona_es": (3, 2)}


def clinicdb_png(raw):
    """ClinicDB as PNG copies alone."""
    folder = raw / "CVC-ClinicDB" / "PNG"
    pair(folder / "Original" / "1.png", folder / "Ground Truth" / "1.png")
    return {"cvc_clinicdb_barcelona_es": (1, 1)}


def clinicdb_both(raw):
    """ClinicDB as TIFFs with PNG copies beside them, which then count for nothing."""
    for kind, stems in (("TIF", "12"), ("PNG", "1")):
        folder = raw / "CVC-ClinicDB" / kind
        for stem in stems:
            pair(folder / "Original" / f"{stem}.{kind.lower()}", folder / "Ground Truth" / f"{stem}.{kind.lower()}")
    (raw / "CVC-ClinicDB" / "metadata.csv").write_text("frame_id\n")
    return {"cvc_clinicdb_barcelona_es": (2, 1)}


def polypgen(raw):
    """PolypGen's six centres, with boxes, drawings, sequences and the pool of all positive frames beside them."""
    folder = raw / "PolypGen2021_MultiCenterData_v3"
    stems = {
        1: ("176OLCV1_100H0002", "176OLCV1_100H0255", "177OLCV1_100H0014"), 2: ("EndoCV2021_001000",),
        3: ("C3_EndoCV2021_00104", "C3_EndoCV2021_00489_"), 4: ("1", "2"), 5: ("EndoCV2021_C5_50000003",),
        6: ("EndoCV2021_C6_0100001",),
    }  # fmt: skip
    for centre, names in stems.items():
        place = folder / f"data_C{centre}"
        for stem in names:
            mask = f"{stem.removesuffix('_')}_mask"
            pair(place / f"images_C{centre}" / f"{stem}.jpg", place / f"masks_C{centre}" / f"{mask}.jpg")
            pair(folder / "imagesAll_positive" / f"{stem}.jpg", place / f"bbox_image_C{centre}" / f"{mask}_bbox.jpg")
    sequence = folder / "sequenceData" / "positive" / "seq1"
    pair(sequence / "images_seq1" / "C1_1.jpg", sequence / "masks_seq1" / "C1_1_mask.jpg")
    negative = folder / "sequenceData" / "negativeOnly" / "seq1_neg"
    pair(negative / "n1.jpg", negative / "n2.jpg")
    return {
        "polypgen_c1_paris_fr": (3, 2), "polypgen_c2_padova_it": (1, 1), "polypgen_c3_aviano_it": (2, 2),
        "polypgen_c4_oslo_no": (2, 2), "polypgen_c5_oxford_uk": (1, 1), "polypgen_c6_alexandria_eg": (1, 1),
    }  # fmt: skip


def etis(raw):
    """ETIS-Larib: a folder of its own name beside the masks, p1.tif for 1.tif."""
    folder = raw / "ETIS-LaribPolypDB"
    for number in (1, 14, 15, 196):
        pair(folder / "ETIS-LaribPolypDB" / f"{number}.tif", folder / "Ground Truth" / f"p{number}.tif")
    return {"etis_lariboisiere_fr": (4, 3)}


def etis_unwrapped(raw):
    """ETIS-Larib unpacked without a folder around it."""
    pair(raw / "ETIS-LaribPolypDB" / "1.tif", raw / "Ground Truth" / "p1.tif")
    return {"etis_lariboisiere_fr": (1, 1)}


def colondb(raw):
    """ColonDB as it is passed on: frames of two runs."""
    folder = raw / "CVC-ColonDB"
    for number in (1, 38, 39):
        pair(folder / "images" / f"{number}.png", folder / "masks" / f"{number}.png")
    return {"cvc_colondb_barcelona_es": (3, 2)}


def test_pack(raw):
    """PraNet's test pack: of its five sets, three are parts of other data sets."""
    for name in ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir"):
        folder = raw / "TestDataset" / name
        pair(folder / "images" / "7.png", folder / "masks" / "7.png")
    return {"cvc_colondb_barcelona_es": (1, 1), "etis_lariboisiere_fr": (1, 1)}


def own_layout(raw):
    """The layout of one's own frames, under a known name and another."""
    for site, suffix in (("polypgen_c1_paris_fr", "_mask"), ("my_hospital", "")):
        for stem in ("a_1", "a_2"):
            pair(raw / site / "images" / f"{stem}.png", raw / site / "labels" / f"{stem}{suffix}.png")
    return {"polypgen_c1_paris_fr": (2, 1), "my_hospital": (2, 2)}


test_pack.__test__ = False  # an imitation, no test
LAYOUTS = (
    kvasir, clinicdb, clinicdb_png, clinicdb_both, polypgen, etis, etis_unwrapped, colondb, test_pack, own_layout,
)  # fmt: skip
