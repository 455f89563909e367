"""Dice and IoU in three modes: per image, per image as FedFMS's reference code computes them, and per volume.

`standard`: sigmoid(logit) > 0.5. Images that are empty in truth and prediction are excluded and counted.
`fedfms`: the raw logit at five thresholds; smoothed ratios are averaged over thresholds, then over images. Use it to
compare with that paper's table. `volume`: like `standard`, over all slices of a case; only if some case has several.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the raw logit
DICE_SMOOTH = 1e-4
IOU_SMOOTH = 1e-6
MODES = ("standard", "fedfms")  # per image
VOLUME = "volume"
METRICS = ("dice", "iou")
PRESENT = "present"  # number of images and cases whose truth shows a structure
_EXCLUDES_EMPTY = ("standard", VOLUME)


def standard(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and IoU, each (B, C), of logits and binary masks (B, C, h, w); NaN where truth and prediction are empty."""
    from monai.metrics import compute_dice, compute_iou  # slow import, which reports do not need

    # sigmoid(x) > 0.5 is x > 0; float32's sigmoid would round the smallest positive logits down to 0.5.
    predicted, truth = (logits > 0).float(), (masks > 0.5).float()
    # MONAI's ignore_empty excludes every image with an empty truth; a false positive there must count as 0.
    dice = compute_dice(predicted, truth, include_background=True, ignore_empty=False)
    iou = compute_iou(predicted, truth, include_background=True, ignore_empty=False)
    empty = (predicted.flatten(2).sum(-1) + truth.flatten(2).sum(-1)) == 0
    return dice.masked_fill(empty, torch.nan), iou.masked_fill(empty, torch.nan)


def fedfms(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and IoU, each (B, C), of raw logits and binary masks (B, C, h, w), as FedFMS's reference code computes them.

    Dice = (2 inter + 1e-4) / (sum + 1e-4) and IoU = (inter + 1e-6) / (union + 1e-6), averaged over `THRESHOLDS`. Both
    are 1 where truth and prediction are empty.
    """
    truth = (masks > 0.5).flatten(2)
    dice = torch.zeros(logits.shape[:2], dtype=torch.float64, device=logits.device)
    iou = torch.zeros_like(dice)
    for threshold in THRESHOLDS:  # a plain sum: the last bit of torch's mean depends on the batch size
        predicted = (logits > threshold).flatten(2)
        inter = (predicted & truth).sum(-1).double()
        total = predicted.sum(-1).double() + truth.sum(-1).double()
        dice += (2 * inter + DICE_SMOOTH) / (total + DICE_SMOOTH)
        iou += (inter + IOU_SMOOTH) / (total - inter + IOU_SMOOTH)
    return dice / len(THRESHOLDS), iou / len(THRESHOLDS)


class Scores:
    """Collects Dice and IoU of images batch by batch; reports means by mode and structure in float64.

    The result does not depend on the order of the images or on the batch size, to the bit: the values of all images
    are stored, and sums are exact.
    """

    def __init__(self, structures: Sequence[str]) -> None:
        self._structures = tuple(structures)
        empty = torch.empty(0, len(structures), 2, dtype=torch.float64)
        self._values = {mode: [empty] for mode in MODES}  # each (B, C, 2): Dice and IoU
        self._pixels: list[torch.Tensor] = []  # (B, C, 2), int64: pixels of the intersection; of truth + prediction
        self._present = [torch.empty(0, len(structures), dtype=torch.bool)]  # (B, C): the truth shows the structure
        self._names: list[tuple[str, str]] = []  # key and case of each image

    @classmethod
    def mean(cls, several: Sequence[Scores]) -> Scores:
        """The mean over several models, image by image, of scores of the same images; without `volume`.

        Raises:
            ValueError: `several` is empty, or the images or their order differ.
        """
        if not several or any(scores._names != several[0]._names for scores in several):
            raise ValueError("a mean needs scores, at least one, all of the same images in one order")
        made = cls(several[0]._structures)
        made._names, made._present = list(several[0]._names), list(several[0]._present)
        for mode in MODES:
            made._values[mode] = [torch.stack([torch.cat(scores._values[mode]) for scores in several]).nanmean(0)]
        return made

    def add(
        self, logits: torch.Tensor, masks: torch.Tensor, keys: Sequence[str] = (), cases: Sequence[str] = (),
        *, whole_cases: bool = True,
    ) -> None:  # fmt: skip
        """Add a batch: logits and binary masks (B, C, h, w), C the number of structures.

        Args:
            keys: a name of each image, for `images`.
            cases: the case of each image; by default every image is a case.
            whole_cases: all slices of each case will be added; if not, `volume` is not reported.

        Raises:
            ValueError: the shapes differ, C is not the number of structures, or the number of names is not B.
        """
        if logits.shape != masks.shape or logits.shape[1] != len(self._structures):
            shapes = f"logits {tuple(logits.shape)}, masks {tuple(masks.shape)}"
            raise ValueError(f"{shapes}: both must be (B, {len(self._structures)}, h, w)")
        first = len(self._names)
        default = [f"image {first + index}" for index in range(len(logits))]
        self._names += zip(keys or default, cases or default, strict=True)
        predicted, truth = (logits > 0).flatten(2), (masks > 0.5).flatten(2)
        self._present.append(truth.any(-1).cpu())
        for mode, function in zip(MODES, (standard, fedfms), strict=True):
            self._values[mode].append(torch.stack(function(logits, masks), -1).double().cpu())
        if whole_cases:
            pixels = [(predicted & truth).sum(-1), predicted.sum(-1) + truth.sum(-1)]
            self._pixels.append(torch.stack(pixels, -1).cpu())

    def result(self) -> dict[str, Any]:
        """{"standard": {structure: row}, "fedfms": ..., "images": n, "dice": mean over structures of `standard`},
        "volume" if some case has several images, and "present": {"image" | "case": {structure: n}}, which the
        disclosure rule needs (`fedfms.training.disclosure`).

        A row is {"dice", "iou", "dice_sd", "iou_sd", "images"}: means, sample standard deviations and number of the
        images (cases for `volume`) counted; for `standard` and `volume` also "empty", the number of those excluded.
        A mean of no value and a deviation of fewer than two are None.
        """
        values = {mode: torch.cat(parts) for mode, parts in self._values.items()} | self._volumes()
        result: dict[str, Any] = {
            mode: {name: _row(each[:, index], mode) for index, name in enumerate(self._structures)}
            for mode, each in values.items()
        }
        dice = mean_over_structures(result["standard"], "dice")
        return result | {"images": len(self._names), "dice": dice, PRESENT: self._count_present()}

    def images(self) -> list[dict[str, Any]]:
        """Scores of every image, in the order of `add`; they must not leave the site.

        Each is {"key", "case", "scores": {mode: {structure: {"dice", "iou"}}}}, with None where truth and prediction
        are empty. Images with equal pixels (mostly black slices) have equal keys; repeated ones get "#2", "#3", ...
        """
        values = {mode: torch.cat(parts).tolist() for mode, parts in self._values.items()}
        seen, images = Counter[str](), []
        for index, (key, case) in enumerate(self._names):
            seen[key] += 1
            scores = {
                mode: {name: _by_metric(pair) for name, pair in zip(self._structures, each[index], strict=True)}
                for mode, each in values.items()
            }
            images.append({"key": key if seen[key] == 1 else f"{key}#{seen[key]}", "case": case, "scores": scores})
        return images

    def _volumes(self) -> dict[str, torch.Tensor]:
        """{"volume": (cases, C, 2)} over all pixels of a case; empty if every image is a case."""
        cases = {case: index for index, case in enumerate(dict.fromkeys(case for _, case in self._names))}
        if len(cases) == len(self._names) or not self._pixels:
            return {}
        pixels = torch.zeros(len(cases), len(self._structures), 2, dtype=torch.int64)
        pixels.index_add_(0, torch.tensor([cases[case] for _, case in self._names]), torch.cat(self._pixels))
        inter, total = pixels.double().unbind(-1)  # 0 / 0 is NaN: empty in truth and prediction
        return {VOLUME: torch.stack([2 * inter / total, inter / (total - inter)], -1)}

    def _count_present(self) -> dict[str, dict[str, int]]:
        """Number of images, and of cases, whose truth shows each structure."""
        columns = torch.cat(self._present).T.tolist()
        units: dict[str, Sequence[Any]] = {"image": range(len(self._names)), "case": [case for _, case in self._names]}
        return {
            unit: {
                name: len({id_ for id_, present in zip(ids, column, strict=True) if present})
                for name, column in zip(self._structures, columns, strict=True)
            }
            for unit, ids in units.items()
        }


def merge(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`Scores.result()` of the union of the images behind `results`, which must have no case in common.

    Equals the result of one `Scores` of all images, up to rounding. A row that is suppressed in one result
    (`fedfms.training.disclosure`) is suppressed in the union: otherwise it could be computed from the union and the
    others. `volume` is reported if all results have it.

    Raises:
        ValueError: `results` is empty, or the structures or their order differ.
    """
    if not results or any(list(r["standard"]) != list(results[0]["standard"]) for r in results):
        raise ValueError("merge needs results, at least one, all of the same structures")
    if len(results) == 1:
        return dict(results[0])
    modes = [mode for mode in (*MODES, VOLUME) if all(mode in result for result in results)]
    merged: dict[str, Any] = {
        mode: {name: _merge_rows([result[mode][name] for result in results]) for name in results[0][mode]}
        for mode in modes
    }
    images = sum(result["images"] for result in results)
    merged |= {"images": images, "dice": mean_over_structures(merged["standard"], "dice")}
    if all(PRESENT in result for result in results):
        merged[PRESENT] = {
            unit: {name: sum(result[PRESENT][unit][name] for result in results) for name in counts}
            for unit, counts in results[0][PRESENT].items()
        }
    return merged


def mean_over_structures(by_structure: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    """Unweighted mean of a metric over the structures that have a value; None if none has."""
    values = [row[metric] for row in by_structure.values() if row[metric] is not None]
    return sum(values) / len(values) if values else None


def _row(values: torch.Tensor, mode: str) -> dict[str, Any]:
    """One structure's row of `Scores.result`, from Dice and IoU (n, 2) of images or cases."""
    columns = [column[~column.isnan()].tolist() for column in values.unbind(-1)]
    counted = len(columns[0])
    row = _by_metric([fmean(column) if column else None for column in columns], map(_sd, columns))
    row["images"] = counted
    return row | {"empty": len(values) - counted} if mode in _EXCLUDES_EMPTY else row


def _merge_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if any(row["images"] is None for row in rows):
        return dict.fromkeys(rows[0])
    means, sds = zip(*(_pool([row for row in rows if row["images"]], metric) for metric in METRICS), strict=True)
    return _by_metric(means, sds) | {
        key: sum(row[key] for row in rows) for key in ("images", "empty") if key in rows[0]
    }


def _pool(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of a metric over the union of the images behind the rows."""
    count = sum(row["images"] for row in rows)
    if not count:
        return None, None
    mean = math.fsum(row[metric] * row["images"] for row in rows) / count
    within = math.fsum((row["images"] - 1) * (row[f"{metric}_sd"] or 0.0) ** 2 for row in rows)
    between = math.fsum(row["images"] * (row[metric] - mean) ** 2 for row in rows)
    return mean, math.sqrt((within + between) / (count - 1)) if count > 1 else None


def _by_metric(values: Iterable[float | None], sds: Iterable[float | None] = ()) -> dict[str, Any]:
    """{"dice", "iou"} and, if given, {"dice_sd", "iou_sd"}; NaN becomes None."""
    numbers = [None if value is None or math.isnan(value) else value for value in (*values, *sds)]
    return dict(zip((*METRICS, *(f"{metric}_sd" for metric in METRICS)), numbers, strict=False))


def _sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
