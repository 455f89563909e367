"""Dice and IoU in two modes: as the field computes them, and as the reference code of FedFMS does.

`standard`: sigmoid(logit) > 0.5, by image; an image without the structure in truth and prediction is left out and
counted. `fedfms`: the raw logit at five thresholds, smoothed ratios averaged over thresholds, then images; it is
kept so that numbers can be compared with that paper's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.metrics import compute_dice, compute_iou

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the raw logit
DICE_SMOOTH = 1e-4
IOU_SMOOTH = 1e-6
MODES = ("standard", "fedfms")


def standard(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and IoU, each (B, C), of logits and binary masks (B, C, h, w); NaN where both are empty."""
    # sigmoid(x) > 0.5 is x > 0; float32's sigmoid would round the smallest positive logits down to 0.5.
    predicted, truth = (logits > 0).float(), (masks > 0.5).float()
    # MONAI's ignore_empty leaves out every image with an empty truth; a false alarm there must count as 0.
    dice = compute_dice(predicted, truth, include_background=True, ignore_empty=False)
    iou = compute_iou(predicted, truth, include_background=True, ignore_empty=False)
    empty = (predicted.flatten(2).sum(-1) + truth.flatten(2).sum(-1)) == 0
    return dice.masked_fill(empty, torch.nan), iou.masked_fill(empty, torch.nan)


def fedfms(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and IoU, each (B, C), as FedFMS's reference code computes them, averaged over its thresholds.

    Dice = (2 inter + 1e-4) / (sum + 1e-4), IoU = (inter + 1e-6) / (union + 1e-6), of logits (B, C, h, w) as they are
    and binary masks (B, C, h, w). Where truth and prediction are both empty, both are 1.
    """
    truth = (masks > 0.5).flatten(2)
    dice = torch.zeros(logits.shape[:2], dtype=torch.float64, device=logits.device)
    iou = torch.zeros_like(dice)
    for threshold in THRESHOLDS:  # added one by one: the last bit of torch's mean depends on the batch's size
        predicted = (logits > threshold).flatten(2)
        inter = (predicted & truth).sum(-1).double()
        total = predicted.sum(-1).double() + truth.sum(-1).double()
        dice += (2 * inter + DICE_SMOOTH) / (total + DICE_SMOOTH)
        iou += (inter + IOU_SMOOTH) / (total - inter + IOU_SMOOTH)
    return dice / len(THRESHOLDS), iou / len(THRESHOLDS)


class Scores:
    """Means over images of both modes, by structure; gathered batch by batch in float64.

    How the images are cut into batches changes no bit of the result: the values of all images are kept (four numbers
    an image and structure) and summed once.
    """

    def __init__(self, structures: Sequence[str]) -> None:
        self._structures = tuple(structures)
        self._values: dict[str, list[torch.Tensor]] = {
            f"{mode} {metric}": [] for mode in MODES for metric in ("dice", "iou")
        }

    def add(self, logits: torch.Tensor, masks: torch.Tensor) -> None:
        """Count a batch: logits and binary masks (B, C, h, w), C the number of structures.

        Raises:
            ValueError: the shapes differ, or there is not a channel for every structure.
        """
        if logits.shape != masks.shape or logits.shape[1] != len(self._structures):
            shapes = f"logits {tuple(logits.shape)}, masks {tuple(masks.shape)}"
            raise ValueError(f"{shapes}: both must be (B, {len(self._structures)}, h, w)")
        for key, value in zip(self._values, (*standard(logits, masks), *fedfms(logits, masks)), strict=True):
            self._values[key].append(value.double().cpu())

    def result(self) -> dict[str, Any]:
        """{"standard": {structure: {"dice", "iou", "images", "empty"}}, "fedfms": {structure: {"dice", "iou",
        "images"}}, "images": n, "dice": mean over structures of the standard one}; None where nothing was counted.
        """
        rows = {key: torch.cat(v) if v else torch.empty(0, len(self._structures)) for key, v in self._values.items()}
        images = len(rows["fedfms dice"])
        result: dict[str, Any] = {mode: {} for mode in MODES}
        for index, name in enumerate(self._structures):
            for mode in MODES:
                result[mode][name] = {
                    "dice": _mean(rows[f"{mode} dice"][:, index]),
                    "iou": _mean(rows[f"{mode} iou"][:, index]),
                    "images": int((~rows[f"{mode} dice"][:, index].isnan()).sum()),
                }
            result["standard"][name]["empty"] = images - result["standard"][name]["images"]
        return result | {"images": images, "dice": mean_over_structures(result["standard"], "dice")}


def merge(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`Scores.result()` over the union of the images behind `results`: means weighted by the images counted.

    Equal to the result of one `Scores` that saw all images, to the last digits of a float64.

    Raises:
        ValueError: there is no result, or they are not of the same structures in the same order.
    """
    if not results or any(list(r["standard"]) != list(results[0]["standard"]) for r in results):
        raise ValueError("merge needs results, at least one, all of the same structures")
    merged: dict[str, Any] = {mode: {} for mode in MODES}
    for name in results[0]["standard"]:
        for mode in MODES:
            rows = [result[mode][name] for result in results]
            merged[mode][name] = {
                "dice": _weighted((row["dice"], row["images"]) for row in rows),
                "iou": _weighted((row["iou"], row["images"]) for row in rows),
                "images": sum(row["images"] for row in rows),
            }
        merged["standard"][name]["empty"] = sum(result["standard"][name]["empty"] for result in results)
    images = sum(result["images"] for result in results)
    return merged | {"images": images, "dice": mean_over_structures(merged["standard"], "dice")}


def mean_over_structures(by_structure: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    """Plain mean of a metric over the structures that have one; None when none has."""
    values = [row[metric] for row in by_structure.values() if row[metric] is not None]
    return sum(values) / len(values) if values else None


def _mean(values: torch.Tensor) -> float | None:
    counted = values[~values.isnan()]
    return float(counted.mean()) if len(counted) else None


def _weighted(pairs: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, count) for value, count in pairs if value is not None and count]
    count = sum(count for _, count in known)
    return sum(value * number for value, number in known) / count if known else None
