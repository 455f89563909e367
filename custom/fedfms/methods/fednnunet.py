"""FednnU-Net: nnU-Net's 2D network and its training (Isensee et al., Nature Methods 2021), averaged by sample count."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from fedfms.methods.fedavg import FedAvg
from fedfms.methods.losses import Loss
from fedfms.methods.options import NonNegative, Positive, checked
from fedfms.methods.schedule import SCHEDULES
from fedfms.models.nnunet_plan import Plan
from fedfms.schema import Float
from fedfms.study import Study, TrainSpec

_NO_PLAN: dict[str, Any] = {}
_SMOOTH = 1e-5


class FedNNUNet(FedAvg):
    """Trains and shares the whole network, built by `plan` or, without one, by nnU-Net's rules for the input size.

    Args:
        plan: output of `fedfms plan` on the sites' merged fingerprints; it also sets the input size.
        lr: initial learning rate, in place of the study's, which is meant for Adam.
        momentum: Nesterov's momentum.
        clip: maximum gradient norm of a step.
        augment: "nnunet" replaces the study's `data.augment`; "study" does not.
    """

    name = "fednnunet"
    paper = "nnU-Net, Nature Methods 2021"
    family = "nnunet"
    trained_roles = frozenset({"encoder", "decoder", "head"})

    @checked
    def __init__(
        self, *, plan: dict[str, Any] = _NO_PLAN, lr: Positive = 1e-2,
        momentum: Annotated[Float, Field(gt=0, lt=1)] = 0.99, weight_decay: NonNegative = 3e-5, clip: Positive = 12.0,
        augment: Literal["nnunet", "study"] = "nnunet",
    ) -> None:  # fmt: skip
        self.plan = Plan.from_dict(plan).to_dict() if plan else plan
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._clip, self._augment = clip, augment

    def adapt_study(self, study: Study) -> Study:
        """The study with nnU-Net's augmentation, and with the plan's input size if there is a plan."""
        if self._augment == "nnunet":
            study = replace(study, data=replace(study.data, augment="nnunet"))
        return replace(study, model=replace(study.model, input_px=self.plan.get("input_px", study.model.input_px)))

    def loss(self, spec: TrainSpec) -> Loss:
        """Dice over the batch plus cross-entropy, with sigmoids: structures may overlap, like nnU-Net's regions."""
        from monai.losses import DiceLoss  # slow import, which the server does not need

        dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=_SMOOTH, smooth_dr=_SMOOTH)
        entropy = nn.BCEWithLogitsLoss()
        return deeply_supervised(lambda logits, masks: dice(logits, masks) + entropy(logits, masks))

    def optimizer(self, parameters: Mapping[str, nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum, which persists across rounds; gradients are clipped by norm."""
        trained = list(parameters.values())
        optimizer = torch.optim.SGD(
            trained, lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay, nesterov=True
        )

        def clip_gradients(*_: Any) -> None:
            nn.utils.clip_grad_norm_(trained, self._clip)

        optimizer.register_step_pre_hook(clip_gradients)
        return optimizer

    def learning_rate(self, spec: TrainSpec, done: float) -> float:
        """lr (1 - done)^0.9: nnU-Net's decay, by round instead of epoch; 0 from the last planned round on."""
        return self._lr * SCHEDULES["poly"](done)


def deeply_supervised(loss: Loss) -> Loss:
    """`loss` for logits (B, C, h, w), or their mean over K levels (B, K, C, h, w), halving the weight per level."""

    def total(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        if logits.ndim == masks.ndim:
            return loss(logits, masks)
        weights = [0.5**level for level in range(logits.shape[1])]
        losses = [weight * loss(logits[:, level], masks) for level, weight in enumerate(weights)]
        return torch.stack(losses).sum() / sum(weights)

    return total
