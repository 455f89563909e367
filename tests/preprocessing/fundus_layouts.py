"""Imitations of the layout of each fundus data set: each makes a site's folder and returns its number of cases."""

import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 24, 30
RIM_VALUES, RIM_INVERTED = {0: 0, 1: 1, 2: 2}, {0: 255, 1: 128, 2: 0}


def truth(height=HEIGHT, width=WIDTH):
    """A label (H, W): rim 1 around a cup 2, off-centre and asymmetric."""
    label = np.zeros((height, width), np.uint8)
    label[5:17, 8:22] = 1
    label[7:12, 10:18] = 2
    return label


def photo(path, height=HEIGHT, width=WIDTH):
    """A photograph with different halves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    Image.fromarray(pixels).save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return pixels


def mask(path, array):
    """A mask file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def stored(table, label=None):
    """Stored values of a label under a table."""
    label = truth() if label is None else label
    return np.vectorize(table.get)(label).astype(np.uint8)


def refuge(site):
    """REFUGE as published: training in folders by diagnosis, validation in one."""
    for stem, folder in (("g0001", "Glaucoma"), ("n0001", "Non-Glaucoma")):
        photo(site / "Training400" / folder / f"{stem}.jpg")
        annotations = site / "Annotation-Training400"
        mask(annotations / "Disc_Cup_Masks" / folder / f"{stem}.bmp", stored(RIM_INVERTED))
        photo(annotations / "Disc_Cup_Fovea_Illustration" / f"{stem}.jpg")
    photo(site / "REFUGE-Validation400" / "V0001.jpg")
    mask(site / "REFUGE-Validation400-GT" / "Disc_Cup_Masks" / "V0001.bmp", stored(RIM_INVERTED))
    (site / "Annotation-Training400" / "Fovea_location.xlsx").write_bytes(b"x")
    return 3


def refuge_index(site):
    """REFUGE as redistributed with 0, 1, 2, next to crops of the same images."""
    for part, stem in (("train", "g0001"), ("test", "T0001")):
        for kind in ("", "_Cropped", "_Square"):
            photo(site / part / f"Images{kind}" / f"{stem}.jpg")
            mask(site / part / f"Masks{kind}" / f"{stem}.png", stored(RIM_VALUES))
    return 2


def origa_png(site):
    """ORIGA with PNG masks next to MATLAB masks, which are then not read."""
    photo(site / "Images" / "001.jpg")
    mask(site / "Masks" / "001.png", stored(RIM_VALUES))
    (site / "Semi-automatic-annotations").mkdir()
    (site / "Semi-automatic-annotations" / "001.mat").write_bytes(b"not read")
    return 1


def origa_mat(site):
    """ORIGA with MATLAB masks only."""
    photo(site / "Images" / "001.jpg")
    (site / "Semi-automatic-annotations").mkdir()
    savemat(site / "Semi-automatic-annotations" / "001.mat", {"mask": truth().astype(np.float64)})
    return 1


def g1020(site):
    """G1020: palette masks, and JSON outlines among the images."""
    for number in range(2):
        photo(site / "Images" / f"image_{number}.jpg")
        (site / "Images" / f"image_{number}.json").write_text("{}")
        (site / "Masks").mkdir(exist_ok=True)
        image = Image.fromarray(truth())
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        image.save(site / "Masks" / f"image_{number}.png")
    return 2


def drishti(site):
    """Drishti-GS1: soft maps of four experts who all agree."""
    for part, folder, stem in (("Training", "GT", "drishtiGS_002"), ("Test", "Test_GT", "drishtiGS_001")):
        photo(site / part / "Images" / f"{stem}.png")
        soft = site / part / folder / stem / "SoftMap"
        mask(soft / f"{stem}_ODsegSoftmap.png", (truth() > 0).astype(np.uint8) * 255)
        mask(soft / f"{stem}_cupsegSoftmap.png", (truth() > 1).astype(np.uint8) * 255)
        (site / part / folder / stem / f"{stem}_cdrValues.txt").write_text("0.5")
    return 2


def rim_one_r3(site):
    """RIM-ONE r3: two views side by side; several experts marked the left one."""
    for stem, folder in (("N-10-R", "Healthy"), ("G-1-L", "Glaucoma and suspects")):
        photo(site / folder / "Stereo Images" / f"{stem}.jpg", width=2 * WIDTH)
        for expert, suffix in (("Expert1_masks", "exp1"), ("Expert2_masks", "exp2"), ("Average_masks", "Avg")):
            label = truth() if suffix == "exp1" else np.ones_like(truth())
            if stem == "N-10-R":  # as wide as both views
                label = np.concatenate((label, np.zeros_like(label)), axis=1)
            for kind, value in (("Disc", 0), ("Cup", 1)):
                marked = (label > value).astype(np.uint8) * 255
                mask(site / folder / expert / f"{stem}-1-{kind}-{suffix}.png", marked)
    return 2


def rim_one_dl(site):
    """RIM-ONE DL: the same images in two partitions, and masks from the script of the release."""
    for partition in ("partitioned_by_hospital", "partitioned_randomly"):
        photo(site / "RIM-ONE_DL_images" / partition / "training_set" / "normal" / "r1_Im001.png")
    for kind, value in (("Disc", 0), ("Cup", 1)):
        mask(site / "masks" / "normal" / f"r1_Im001-1-{kind}-T.png", (truth() > value).astype(np.uint8) * 255)
    return 1


LAYOUTS = (refuge, refuge_index, origa_png, origa_mat, g1020, drishti, rim_one_r3, rim_one_dl)
