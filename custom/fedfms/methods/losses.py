"""Losses on logits. FedFMS's reference code trains with BCE and a weight of 2 for positives."""

from collections.abc import Callable

import torch
from torch import nn

from fedfms.study import TrainSpec

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(spec: TrainSpec) -> Loss:
    """Loss of (logits, masks), both (B, C, h, w): `bce` with `pos_weight`, or `dice_bce`, its sum with Dice."""
    bce = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(spec.pos_weight))
    if spec.loss == "bce":
        return lambda logits, masks: bce.to(logits.device)(logits, masks)
    from monai.losses import DiceLoss  # takes seconds and 200 MB, and the server does not need it

    dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
    return lambda logits, masks: bce.to(logits.device)(logits, masks) + dice(logits, masks)
