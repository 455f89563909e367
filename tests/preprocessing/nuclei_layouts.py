"""Imitations of the layout of each nuclei data set: each makes a site's folder and returns its number of cases, its
patients, and its number of unused files.
"""

import numpy as np
from PIL import Image

from tests.preprocessing.test_annotations import aperio, drawn, polygon

HEIGHT, WIDTH = 20, 26
ONE, TWO = ((2, 3), (7, 3), (7, 9), (2, 9)), ((12, 10), (24, 10), (24, 18), (12, 18))


def truth():
    """A label (H, W) of the nuclei `ONE` and `TWO`."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[3:9, 2:7] = label[10:18, 12:24] = 1
    return label


def tile(path, **options):
    """An image of the nuclei, dark on a bright background."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.where(truth()[..., None] > 0, 60, 220).astype(np.uint8).repeat(3, axis=2)
    Image.fromarray(pixels).save(path, **options)


def mask(path, array):
    """A mask file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def xml(path, text):
    """An annotation file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def monusac(site):
    """MoNuSAC2020: TIF, SVS and XML in one folder per slide; one test tile has an SVS only."""
    train = site / "MoNuSAC_images_and_annotations" / "TCGA-5P-A9K0-01Z-00-DX1"
    test = site / "MoNuSAC Testing Data and Annotations" / "TCGA-2Z-A9JG-01Z-00-DX1"
    text = aperio(("Epithelial", [(ONE, "")]), ("Lymphocyte", [(TWO, "")]))
    for number in (1, 2):
        tile(train / f"TCGA-5P-A9K0-01Z-00-DX1_{number}.tif")
        (train / f"TCGA-5P-A9K0-01Z-00-DX1_{number}.svs").write_bytes(b"not read")
        xml(train / f"TCGA-5P-A9K0-01Z-00-DX1_{number}.xml", text)
    preview = Image.new("RGB", (5, 5))
    tile(test / "TCGA-2Z-A9JG-01Z-00-DX1_1.svs", format="TIFF", save_all=True, append_images=[preview])
    xml(test / "TCGA-2Z-A9JG-01Z-00-DX1_1.xml", text)
    return 3, {"TCGA-5P-A9K0", "TCGA-2Z-A9JG"}, 2


def monuseg(site):
    """MoNuSeg2018: training data in two folders, test tiles next to their XML."""
    text, stems = aperio(("", [(ONE, ""), (TWO, "")])), ("TCGA-A7-A13E-01Z-00-DX1", "TCGA-A7-A13F-01Z-00-DX1")
    for stem in stems:
        tile(site / "MoNuSeg 2018 Training Data" / "Tissue Images" / f"{stem}.tif")
        xml(site / "MoNuSeg 2018 Training Data" / "Annotations" / f"{stem}.xml", text)
    tile(site / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.tif")
    xml(site / "MoNuSegTestData" / "TCGA-2Z-A9J9-01A-01-TS1.xml", text)
    xml(site / "__MACOSX" / "TCGA-2Z-A9J9-01A-01-TS1.xml", "x")
    return 3, {"TCGA-A7-A13E", "TCGA-A7-A13F", "TCGA-2Z-A9J9"}, 1


def tnbc(site):
    """TNBC: slides and their masks; slide 12 shows brain."""
    for slide, count in (("01", 2), ("11", 1), ("12", 1)):
        for number in range(1, count + 1):
            tile(site / "TNBC" / f"Slide_{slide}" / f"{slide}_{number}.png")
            mask(site / "TNBC" / f"GT_{slide}" / f"{slide}_{number}.png", truth() * 255)
    return 3, {"slide 1", "slide 11"}, 2


def dsb_published(site):
    """DSB 2018 as published: an image with an alpha channel, one mask per nucleus."""
    for id_ in ("0ab", "1cd"):
        _rgba(site / "stage1_train" / id_ / "images" / f"{id_}.png")
        for number, part in enumerate(_instances()):
            mask(site / "stage1_train" / id_ / "masks" / f"{number:03d}.png", part)
    return 2, {"0ab", "1cd"}, 0


def dsb_sorted(site):
    """DSB 2018 sorted into images/ and labels/<id>/."""
    for id_ in ("0ab", "1cd"):
        _rgba(site / "images" / f"{id_}.png")
        for number, part in enumerate(_instances()):
            mask(site / "labels" / id_ / f"{number:03d}.png", part)
    return 2, {"0ab", "1cd"}, 0


def outlines_drawn(site):
    """Emory and TCGA: images/ and labels/<stem>_data.xml; the image's name has dots."""
    for stem in ("01", "TCGA-DU-5847-R02.tif_normal.png_small_2"):
        tile(site / "images" / f"{stem}.png")
        xml(site / "labels" / f"{stem}_data.xml", drawn(polygon(ONE) + polygon(TWO, "SmoothPolygon")))
    return 2, {"01", "TCGA-DU-5847"}, 0


def masks_of_numbers(site):
    """One mask per image with a number for each nucleus."""
    tile(site / "images" / "a.png")
    numbers = truth().astype(np.uint16)
    numbers[10:] *= 700
    mask(site / "labels" / "a.tif", numbers)
    return 1, {"a"}, 0


def _instances():
    label = truth()
    return [
        np.where(np.arange(HEIGHT)[:, None] < 10, label, 0) * 255,
        np.where(np.arange(HEIGHT)[:, None] > 9, label, 0),
    ]


def _rgba(path):
    tile(path)
    with Image.open(path) as image:
        image.convert("RGBA").save(path)


LAYOUTS = (monusac, monuseg, tnbc, dsb_published, dsb_sorted, outlines_drawn, masks_of_numbers)
