"""What a site's round comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedfms.methods import Update
from fedfms.training.link import Coded


@dataclass(frozen=True)
class RoundResult:
    """What a site has to say after a round: its update, and how the model that it received did on its own data, as far
    as that may leave the site (`fedfms.training.disclosure`).
    """

    update: Update
    scores: dict[str, Any] | None  # of the received model, on the validation images; None where there are none
    train_loss: float | None
    seconds: float
    load_s: float = 0.0  # of these: opening data and model, waiting for batches
    unreadable_images: int = 0  # left out because they are damaged
    coded: Coded | None = None  # the update as a compressed wire has it
