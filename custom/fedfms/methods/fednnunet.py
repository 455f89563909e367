"""FednnU-Net: nnU-Net's 2D network and its training (Isensee et al., Nature Methods 2021), averaged by sample count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedfms.errors import StudyError
from fedfms.methods.fedavg import FedAvg
from fedfms.methods.losses import Loss
from fedfms.methods.schedule import SCHEDULES
from fedfms.models.nnunet_plan import Plan
from fedfms.study import Study, TrainSpec

_BY_RULE: dict[str, Any] = {}
_SMOOTH = 1e-5


class FedNNUNet(FedAvg):
    """Trains and shares the whole network, made to `plan` or, without one, to the study's input size by the same rules.

    Args:
        plan: what `fedfms plan` made of the sites' merged fingerprints; it sets the input size too.
        lr: the first learning rate; the study's is meant for Adam.
        clip: largest norm of a step's gradient.
        augment: "nnunet" in place of the study's `data.augment`, or "study".
    """

    name = "fednnunet"
    paper = "nnU-Net, Nature Methods 2021"
    family = "nnunet"
    trained_roles = frozenset({"encoder", "decoder", "head"})

    def __init__(
        self, *, plan: dict[str, Any] = _BY_RULE, lr: float = 1e-2, momentum: float = 0.99,
        weight_decay: float = 3e-5, clip: float = 12.0, augment: str = "nnunet",
    ) -> None:  # fmt: skip
        for option, value, fits, must in (
            ("lr", lr, lr > 0, "above 0"),
            ("momentum", momentum, 0 < momentum < 1, "between 0 and 1"),
            ("weight_decay", weight_decay, weight_decay >= 0, "0 or more"),
            ("clip", clip, clip > 0, "above 0"),
            ("augment", augment, augment in ("nnunet", "study"), "nnunet or study"),
        ):
            if not fits:
                raise StudyError(f"{option} is {value!r}", where=f"method {self.name}", do=f"it must be {must}")
        self.plan = Plan.from_dict(plan).to_dict() if plan else plan
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._clip, self._augment = clip, augment

    def adapt_study(self, study: Study) -> Study:
        """The study with nnU-Net's augmentation, and with the plan's input size where there is a plan."""
        if self._augment == "nnunet":
            study = replace(study, data=replace(study.data, augment="nnunet"))
        return replace(study, model=replace(study.model, input_px=self.plan.get("input_px", study.model.input_px)))

    def loss(self, spec: TrainSpec) -> Loss:
        """Dice over the batch plus cross-entropy, of sigmoids: structures may overlap, as nnU-Net's regions do."""
        from monai.losses import DiceLoss  # as in training/losses.py

        dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=_SMOOTH, smooth_dr=_SMOOTH)
        entropy = nn.BCEWithLogitsLoss()
        return deeply_supervised(lambda logits, masks: dice(logits, masks) + entropy(logits, masks))

    def optimizer(self, parameters: Mapping[str, nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
        """SGD with Nesterov's momentum, which a site keeps from round to round; gradients are clipped by their norm."""
        chosen = list(parameters.values())
        optimizer = torch.optim.SGD(
            chosen, lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay, nesterov=True
        )
        optimizer.register_step_pre_hook(lambda *_: _clip(chosen, self._clip))
        return optimizer

    def learning_rate(self, spec: TrainSpec, round_: int) -> float:
        """lr (1 - round / rounds)^0.9: nnU-Net's fall by epoch, by round; 0 from `rounds` on."""
        return self._lr * SCHEDULES["poly"](round_ / spec.rounds)


def deeply_supervised(loss: Loss) -> Loss:
    """`loss` of the one logits (B, C, h, w), or of K (B, K, C, h, w): a mean, each weighing half of the one above."""

    def total(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        if logits.ndim == masks.ndim:
            return loss(logits, masks)
        weights = [0.5**level for level in range(logits.shape[1])]
        losses = [weight * loss(logits[:, level], masks) for level, weight in enumerate(weights)]
        return torch.stack(losses).sum() / sum(weights)

    return total


def _clip(parameters: list[nn.Parameter], most: float) -> None:
    nn.utils.clip_grad_norm_(parameters, most)
