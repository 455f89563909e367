"""The result of a site's round."""

from dataclasses import dataclass
from typing import Any

from fedfms.compression import Payload
from fedfms.methods import Update


@dataclass(frozen=True)
class RoundResult:
    """A site's update and numbers, as far as they may leave the site (`fedfms.training.disclosure`).

    Attributes:
        update: the tensors as the server will have them, and the sample count.
        payload: the update's arrays as they travel.
        scores: of the received model on the validation images; None where there are none.
        load_s: of `seconds`: opening data and model, and waiting for batches.
        unreadable_images: images that were skipped.
    """

    update: Update
    payload: Payload
    scores: dict[str, Any] | None
    train_loss: float | None
    seconds: float
    load_s: float = 0.0
    unreadable_images: int = 0
