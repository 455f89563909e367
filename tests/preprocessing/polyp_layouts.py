"""Imitations of the published layouts of polyp data: each fills a raw folder and returns, by site, the numbers of
pairs and of patients.
"""

import numpy as np
from PIL import Image

SHAPE = (10, 14)


def truth():
    """A label (H, W): a polyp off-centre and asymmetric."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 3:9] = 1
    return label


def pair(image, mask):
    """A frame and its mask."""
    for path, pixels in ((image, np.full((*SHAPE, 3), 90, np.uint8)), (mask, truth() * 255)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))


def pairs(images, masks, names):
    """Frames and masks with the same names."""
    for name in names:
        pair(images / name, masks / name)


def kvasir(raw):
    """Kvasir-SEG: masks with the names of the images; boxes in JSON next to the folders."""
    folder = raw / "Kvasir-SEG"
    pairs(folder / "images", folder / "masks", ("cju0.jpg", "cju1.jpg", "cju2.jpg"))
    (folder / "kavsir_bboxes.json").write_text("{}")
    return {"kvasir_seg_vestreviken_no": (3, 3)}


def clinicdb(raw):
    """ClinicDB as TIFF, frames of two sequences."""
    folder = raw / "CVC-ClinicDB"
    pairs(folder / "Original", folder / "Ground Truth", ("24.tif", "25.tif", "26.tif"))
    return {"cvc_clinicdb_barcelona_es": (3, 2)}


def clinicdb_png(raw):
    """ClinicDB as PNG copies only."""
    folder = raw / "CVC-ClinicDB" / "PNG"
    pairs(folder / "Original", folder / "Ground Truth", ("1.png",))
    return {"cvc_clinicdb_barcelona_es": (1, 1)}


def clinicdb_both(raw):
    """ClinicDB as TIFF with PNG copies next to them, which are then ignored."""
    for kind, names in (("TIF", ("1.tif", "2.tif")), ("PNG", ("1.png",))):
        folder = raw / "CVC-ClinicDB" / kind
        pairs(folder / "Original", folder / "Ground Truth", names)
    (raw / "CVC-ClinicDB" / "metadata.csv").write_text("frame_id\n")
    return {"cvc_clinicdb_barcelona_es": (2, 1)}


def polypgen(raw):
    """PolypGen's six centres, with boxes, sequences and the pool of all positive frames, which are ignored."""
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
    """ETIS-Larib: images in a folder of the same name next to the masks, p1.tif for 1.tif."""
    folder = raw / "ETIS-LaribPolypDB"
    for number in (1, 14, 15, 196):
        pair(folder / "ETIS-LaribPolypDB" / f"{number}.tif", folder / "Ground Truth" / f"p{number}.tif")
    return {"etis_lariboisiere_fr": (4, 3)}


def etis_unwrapped(raw):
    """ETIS-Larib without a folder around it."""
    pair(raw / "ETIS-LaribPolypDB" / "1.tif", raw / "Ground Truth" / "p1.tif")
    return {"etis_lariboisiere_fr": (1, 1)}


def colondb(raw):
    """ColonDB as redistributed: frames of two runs."""
    folder = raw / "CVC-ColonDB"
    pairs(folder / "images", folder / "masks", ("1.png", "38.png", "39.png"))
    return {"cvc_colondb_barcelona_es": (3, 2)}


def test_pack(raw):
    """PraNet's test pack: three of its five sets are parts of other data sets."""
    for name in ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir"):
        folder = raw / "TestDataset" / name
        pairs(folder / "images", folder / "masks", ("7.png",))
    return {"cvc_colondb_barcelona_es": (1, 1), "etis_lariboisiere_fr": (1, 1)}


def own_layout(raw):
    """The layout for own frames, with a known and an unknown name of a site."""
    for site, suffix in (("polypgen_c1_paris_fr", "_mask"), ("my_hospital", "")):
        for stem in ("a_1", "a_2"):
            pair(raw / site / "images" / f"{stem}.png", raw / site / "labels" / f"{stem}{suffix}.png")
    return {"polypgen_c1_paris_fr": (2, 1), "my_hospital": (2, 2)}


test_pack.__test__ = False  # an imitation, not a test
LAYOUTS = (
    kvasir, clinicdb, clinicdb_png, clinicdb_both, polypgen, etis, etis_unwrapped, colondb, test_pack, own_layout,
)  # fmt: skip
