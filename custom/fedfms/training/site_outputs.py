"""Writes outputs that stay in the site's run folder: scores of every image, and overlays of a few."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedfms.data.overlay import overlay_png
from fedfms.files import write_atomic
from fedfms.study import Study
from fedfms.training.metrics import Scores
from fedfms.training.trainer import Trainer

OVERLAYS = 4
_SCORES_FORMAT = 1  # version of the score files


def save_scores(folder: Path, study: Study, model_name: str, part: str, scores: Scores) -> None:
    """Write `scores/<model>.json`: the scores of every image of a part.

    Raises:
        OSError: see `write_atomic`.
    """
    content = {"format": _SCORES_FORMAT, "model": model_name, "part": part, "structures": list(study.structure_names)}
    content["images"] = scores.images()
    folder = folder / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{model_name}.json", json.dumps(content, indent=1, allow_nan=False), mode=0o600)


def save_overlays(
    folder: Path, study: Study, model_name: str, trainer: Trainer, loader: Iterable[Any], count: int
) -> None:
    """Write `overlays/<model>_<n>.png` for the first `count` images: image, truth and prediction side by side.

    Args:
        loader: batches of one image each.

    Raises:
        OSError: see `write_atomic`.
        Aborted: the run was stopped.
    """
    folder = folder / "overlays"
    folder.mkdir(parents=True, exist_ok=True)
    for index, batch in zip(range(count), trainer.until_stopped(loader), strict=False):
        masks = trainer.predict(batch)[0]
        png = overlay_png(
            batch["image"][0], {"truth": batch["label"][0] > 0, "prediction": masks}, study.structure_names
        )
        write_atomic(folder / f"{model_name}_{index}.png", png, mode=0o600)
