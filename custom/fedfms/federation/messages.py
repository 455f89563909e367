"""What passes between a site and the server in a round, before and after validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedfms.compression import Download
from fedfms.federation.update_schema import Schema
from fedfms.methods import Tensors

WEIGHTS, DIFFERENCES = "weights", "differences"  # kinds of update


@dataclass(frozen=True)
class Message:
    """A site's answer, not validated yet: every field below the first two may hold anything.

    Attributes:
        sender: the site, as the connection proves it.
        round: the round that is running at the server.
        names: all names that the message claims to be from.
        job: id of the job that it claims to belong to.
        rounds: all rounds that it claims to belong to.
        kind: `WEIGHTS`, `DIFFERENCES`, or any other text.
        schema: `Schema.hash` of the site's own model.
        samples: slices that the site trained on.
        arrays: name -> array.
        base: digest of the tensors that differences refer to.
        dice: validation Dice of the received model.
        report: the site's numbers for the row of the round.
    """

    sender: str
    round: int
    names: tuple[Any, ...]
    job: Any
    rounds: tuple[Any, ...]
    kind: str
    schema: Any
    samples: Any
    arrays: Mapping[str, Any]
    base: Any = None
    dice: Any = None
    report: Any = None


@dataclass(frozen=True)
class Expected:
    """What a valid message holds.

    Attributes:
        shared: schema of all shared tensors, as they travel.
        update: schema of this update.
        base: digest of the tensors that its differences must refer to; None: it holds weights; empty: the site was
            sent nothing.
    """

    job: str
    round: int
    shared: Schema
    update: Schema
    base: str | None = None


@dataclass(frozen=True)
class Dispatch:
    """What a site is sent for the training of a round.

    Attributes:
        tensors: the shared tensors that the site then has.
        download: their compressed form; None where tensors travel whole.
    """

    tensors: Tensors
    download: Download | None = None

    @property
    def content(self) -> Tensors | Download:
        """What travels."""
        return self.tensors if self.download is None else self.download
