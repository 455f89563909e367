"""A picture of the phantom's sites for the docs; the phantom contains no patient data."""

import numpy as np
from PIL import Image

from fedfms.data import open_site
from fedfms.data.overlay import draw
from fedfms.preprocessing.look import spread
from fedfms.settings import SiteSettings
from fedfms.study import find_study, load_study

SITES = ("site-1", "site-2", "site-3", "site-4")


def picture() -> Image.Image:
    """For each site, from left to right, the image with the median marked area, with disc and cup outlined; 128 px."""
    study = load_study(find_study("phantom"))
    columns = []
    for site in SITES:
        data = open_site(study, site, SiteSettings())
        dataset = data.dataset("all", input_px=study.data.phantom_px, mask_px=study.data.phantom_px)
        samples = [dataset[index] for index in range(len(data.parts["all"]))]
        areas = [float(sample["label"].amax(0).mean()) for sample in samples]
        (middle,) = spread(areas, [sample["key"] for sample in samples], 1)
        image, label = samples[middle]["image"], samples[middle]["label"] > 0
        columns.append(draw(image, label))
    return Image.fromarray(np.concatenate(columns, axis=1))
