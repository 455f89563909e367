"""What a site keeps of a model for its own eyes, in the run's own folder: scores by image, and a few pictures."""

from __future__ import annotations

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
_SCORES_FORMAT = 1  # of the file of scores by image


def save_scores(folder: Path, study: Study, model_name: str, part: str, scores: Scores) -> None:
    """Write `scores/<model>.json`: the scores of every image of a part.

    Raises:
        OSError: as `write_atomic`.
    """
    content = {
        "format": _SCORES_FORMAT,
        "model": model_name,
        "part": part,
        "structures": list(study.structure_names),
        "images": scores.images(),
    }
    folder = folder / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{model_name}.json", json.dumps(content, indent=1, allow_nan=False), mode=0o600)


def draw(folder: Path, study: Study, model_name: str, trainer: Trainer, loader: Iterable[Any], count: int) -> None:
    """Write `overlays/<model>_<n>.png`: the first `count` images of a loader of one each, truths and predictions.

    Raises:
        OSError: as `write_atomic`.
        Aborted: the run was told to stop.
    """
    folder = folder / "overlays"
    folder.mkdir(parents=True, exist_ok=True)
    for index, batch in zip(range(count), trainer.until_stopped(loader), strict=False):
        masks = trainer.predict(batch)[0]
        png = overlay_png(batch["image"][0], batch["label"][0] > 0, masks, study.structure_names)
        write_atomic(folder / f"{model_name}_{index}.png", png, mode=0o600)
