"""Dice and IoU in three modes: as the field computes them, as the reference code of FedFMS does, and by volume.

`standard`: sigmoid(logit) > 0.5, by image; an image without the structure in truth and prediction is left out and
counted. `fedfms`: the raw logit at five thresholds, smoothed ratios averaged over thresholds, then images; it is
kept so that numbers can be compared with that paper's table. `volume`: as standard, of all slices of a case as one;
there only where a case has more than one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the raw logit
DICE_SMOOTH = 1e-4
IOU_SMOOTH = 1e-6
MODES = ("standard", "fedfms")  # by image
VOLUME = "volume"
METRICS = ("dice", "iou")
_COUNTED_EMPTY = ("standard", VOLUME)  # modes that leave out what is empty in truth and prediction


def standard(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and IoU, each (B, C), of logits and binary masks (B, C, h, w); NaN where both are empty."""
    from monai.metrics import compute_dice, compute_iou  # here: reports need the names below, and no MONAI

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
    """Dice and IoU of images, gathered batch by batch, and their means by mode and structure in float64.

    Neither the order of the images nor how they are cut into batches changes a bit of the result: the values of all
    images are kept (seven numbers an image and structure), and sums are exact.
    """

    def __init__(self, structures: Sequence[str]) -> None:
        self._structures = tuple(structures)
        self._values: dict[str, list[torch.Tensor]] = {
            f"{mode} {metric}": [] for mode in MODES for metric in METRICS
        }  # each (B, C)
        self._pixels: list[torch.Tensor] = []  # (B, C, 2), int64: in both, in truth + in prediction
        self._shown: list[torch.Tensor] = []  # (B, C), bool: the truth has the structure
        self._names: list[tuple[str, str]] = []  # key and case of each image

    @classmethod
    def mean(cls, several: Sequence[Scores]) -> Scores:
        """Scores of the same images by several models: of each image the mean over the models that it counts for.

        By volume there is nothing.

        Raises:
            ValueError: there are none, or they are not of the same images in the same order.
        """
        if not several or any(scores._names != several[0]._names for scores in several):
            raise ValueError("a mean needs scores, at least one, all of the same images in one order")
        made = cls(several[0]._structures)
        made._names, made._shown = list(several[0]._names), list(several[0]._shown)
        for key in made._values:
            made._values[key] = [torch.stack([torch.cat(scores._values[key]) for scores in several]).nanmean(0)]
        return made

    def add(
        self, logits: torch.Tensor, masks: torch.Tensor, keys: Sequence[str] = (), cases: Sequence[str] = (),
        *, by_case: bool = True,
    ) -> None:  # fmt: skip
        """Count a batch: logits and binary masks (B, C, h, w), C the number of structures.

        Args:
            keys: a name of each image, for `images`.
            cases: the case that each image is a slice of; by default each is a case of its own.
            by_case: all slices of the cases come; if not, there is nothing by volume.

        Raises:
            ValueError: the shapes differ, or there is not a channel for every structure, or a name for every image.
        """
        if logits.shape != masks.shape or logits.shape[1] != len(self._structures):
            shapes = f"logits {tuple(logits.shape)}, masks {tuple(masks.shape)}"
            raise ValueError(f"{shapes}: both must be (B, {len(self._structures)}, h, w)")
        first = len(self._names)
        default = [f"image {first + index}" for index in range(len(logits))]
        self._names += zip(keys or default, cases or default, strict=True)
        self._shown.append((masks > 0.5).flatten(2).any(-1).cpu())
        for key, value in zip(self._values, (*standard(logits, masks), *fedfms(logits, masks)), strict=True):
            self._values[key].append(value.double().cpu())
        if not by_case:
            return
        predicted, truth = (logits > 0).flatten(2), (masks > 0.5).flatten(2)
        both, either = (predicted & truth).sum(-1), predicted.sum(-1) + truth.sum(-1)
        self._pixels.append(torch.stack([both, either], -1).cpu())

    def result(self) -> dict[str, Any]:
        """{"standard": {structure: row}, "fedfms": ..., "images": n, "dice": mean over structures of the standard
        one}, "volume" where a case has more than one image, and for `fedfms.training.disclosure` "shown": {"image" | "case":
        {structure: number of those whose truth has it}}.

        A row is {"dice", "iou", "dice_sd", "iou_sd", "images"}: means, sample s.d. and number of the images (of
        "volume": cases) counted; of standard and volume "empty" too, the number of those left out. None where there
        is no mean, and where one value has no s.d.
        """
        modes = self._by_image() | self._by_case()
        result: dict[str, Any] = {mode: {} for mode in modes}
        for mode, metrics in modes.items():
            for index, name in enumerate(self._structures):
                columns = [_known(values[:, index]) for values in metrics]
                result[mode][name] = _row(columns, len(metrics[0]), mode)
        dice = mean_over_structures(result["standard"], "dice")
        return result | {"images": len(self._names), "dice": dice, "shown": self._in_truth()}

    def _in_truth(self) -> dict[str, dict[str, int]]:
        shown = torch.cat([torch.zeros(0, len(self._structures), dtype=torch.bool), *self._shown]).T.tolist()
        cases = [case for _, case in self._names]
        return {
            "image": {name: sum(row) for name, row in zip(self._structures, shown, strict=True)},
            "case": {
                name: len({case for case, has in zip(cases, row, strict=True) if has})
                for name, row in zip(self._structures, shown, strict=True)
            },
        }

    def images(self) -> list[dict[str, Any]]:
        """The scores of every image, in the order in which they came: {"key", "case", "scores": {mode: {structure:
        {"dice", "iou"}}}}; None where an image is empty in truth and prediction. For the site's own eyes.

        Of images with the same pixels (black slices, mostly) the second has a key with #2 after it, and so on.
        """
        by_mode, seen = self._by_image(), Counter[str]()
        keys = [key if (count := _next(seen, key)) == 1 else f"{key}#{count}" for key, _ in self._names]
        return [
            {
                "key": key,
                "case": case,
                "scores": {
                    mode: {
                        name: dict(zip(METRICS, (_or_none(v[row, index]) for v in values), strict=True))
                        for index, name in enumerate(self._structures)
                    }
                    for mode, values in by_mode.items()
                },
            }
            for row, (key, (_, case)) in enumerate(zip(keys, self._names, strict=True))
        ]

    def _by_image(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """Dice and IoU (n, C) of each mode by image."""
        none = torch.empty(0, len(self._structures), dtype=torch.float64)
        columns = {key: torch.cat([none, *values]) for key, values in self._values.items()}
        return {mode: tuple(columns[f"{mode} {metric}"] for metric in METRICS) for mode in MODES}

    def _by_case(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """Dice and IoU (cases, C) of all pixels of a case; nothing where every image is a case of its own."""
        of = {case: index for index, case in enumerate(dict.fromkeys(case for _, case in self._names))}
        if len(of) == len(self._names) or not self._pixels:
            return {}
        pixels = torch.zeros(len(of), len(self._structures), 2, dtype=torch.int64)
        pixels.index_add_(0, torch.tensor([of[case] for _, case in self._names]), torch.cat(self._pixels))
        both, either = pixels.double().unbind(-1)  # 0 / 0 is NaN: empty in truth and prediction
        return {VOLUME: (2 * both / either, both / (either - both))}


def merge(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`Scores.result()` over the union of the images behind `results`, which must have no case in common.

    Equal to the result of one `Scores` that saw all images, to the last digits of a float64. What one of them
    withholds (`fedfms.training.disclosure`) is suppressed of all: by the others and the whole it could be worked out. By
    volume there is something where all of them have it.

    Raises:
        ValueError: there is no result, or they are not of the same structures in the same order.
    """
    if not results or any(list(r["standard"]) != list(results[0]["standard"]) for r in results):
        raise ValueError("merge needs results, at least one, all of the same structures")
    if len(results) == 1:
        return dict(results[0])
    modes = [mode for mode in (*MODES, VOLUME) if all(mode in result for result in results)]
    merged: dict[str, Any] = {
        mode: {name: _merged([result[mode][name] for result in results]) for name in results[0][mode]} for mode in modes
    }
    images = sum(result["images"] for result in results)
    merged |= {"images": images, "dice": mean_over_structures(merged["standard"], "dice")}
    if all("shown" in result for result in results):
        merged["shown"] = {
            unit: {name: sum(result["shown"][unit][name] for result in results) for name in of}
            for unit, of in results[0]["shown"].items()
        }
    return merged


def mean_over_structures(by_structure: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    """Plain mean of a metric over the structures that have one; None when none has."""
    values = [row[metric] for row in by_structure.values() if row[metric] is not None]
    return sum(values) / len(values) if values else None


def _row(columns: Sequence[Sequence[float]], of: int, mode: str) -> dict[str, Any]:
    """A row of `Scores.result` of the counted values of each metric, `of` so many images or cases."""
    counted = len(columns[0])
    means, sds = ([what(values) for values in columns] for what in (_mean, _sd))
    row = _named(means, sds) | {"images": counted}
    return row | {"empty": of - counted} if mode in _COUNTED_EMPTY else row


def _merged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if any(row["images"] is None for row in rows):
        return dict.fromkeys(rows[0])
    counted = [row for row in rows if row["images"]]
    means, sds = zip(*(_pooled(counted, metric) for metric in METRICS), strict=True)
    counts = {key: sum(row[key] for row in rows) for key in ("images", "empty") if key in rows[0]}
    return _named(means, sds) | counts


def _pooled(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[float | None, float | None]:
    """Mean and sample s.d. of a metric over the union of the images behind the rows."""
    count = sum(row["images"] for row in rows)
    if not count:
        return None, None
    mean = math.fsum(row[metric] * row["images"] for row in rows) / count
    within = math.fsum((row["images"] - 1) * (row[f"{metric}_sd"] or 0.0) ** 2 for row in rows)
    between = math.fsum(row["images"] * (row[metric] - mean) ** 2 for row in rows)
    return mean, math.sqrt((within + between) / (count - 1)) if count > 1 else None


def _named(means: Sequence[float | None], sds: Sequence[float | None]) -> dict[str, Any]:
    names = (*METRICS, *(f"{metric}_sd" for metric in METRICS))
    return dict(zip(names, (*means, *sds), strict=True))


def _known(values: torch.Tensor) -> list[float]:
    known: list[float] = values[~values.isnan()].tolist()
    return known


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation, of two values or more."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _next(seen: Counter[str], key: str) -> int:
    seen[key] += 1
    return seen[key]


def _or_none(value: torch.Tensor) -> float | None:
    return None if value.isnan() else float(value)
