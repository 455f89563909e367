"""Images per second that a site's loader delivers, by its settings, on the phantom."""

import time
from collections.abc import Sequence
from itertools import product
from typing import Any

from fedfms.data import open_site
from fedfms.settings import SiteSettings
from fedfms.study import DataSpec, Study
from fedfms.training.trainer import batches


def measure(size_px: int, images: int, batch: int, workers: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each number of loader processes, with and without cached slices; two epochs each."""
    rows = []
    for count, cache in product(workers, (True, False)):
        data = DataSpec(phantom_images=images, phantom_px=size_px, cache=cache)
        opened = open_site(Study("benchmark", data=data), "site-1", SiteSettings())
        rates = []
        for _ in range(2):
            dataset = opened.dataset("all", input_px=size_px, mask_px=256)
            started = time.perf_counter()
            seen = sum(len(part["image"]) for part in batches(dataset, batch, workers=count))
            rates.append(round(seen / (time.perf_counter() - started), 1))
        row = {"size_px": size_px, "images": images, "batch": batch, "workers": count, "cache": cache}
        rows.append(row | {"images_per_s_first_epoch": rates[0], "images_per_s_later": rates[1]})
    return rows
