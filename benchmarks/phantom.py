"""A picture of the phantom's sites, for the docs: it shows nobody, so it may be committed."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fedfms.cli import find_study
from fedfms.data.overlay import draw
from fedfms.data.site import open_site
from fedfms.settings import SiteSettings
from fedfms.study import load_study
from preprocessing.look import spread

SITES = ("site-1", "site-2", "site-3", "site-4")


def picture() -> Image.Image:
    """Of each site, from left to right, the image of median marked area with disc and cup outlined; 128 px each, as
    the demo has them.
    """
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
