"""One of five sites turned against the others, and what each rule of `federation.aggregation` makes of it.

Runs the in-process reference loop on the embedded phantom. Dice is of the final global model on all images of a site
that takes no part in training, so that no attacker scores it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from fedfms.federation.inprocess import rounds
from fedfms.methods import Tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study, find_study, load_study
from fedfms.training.result import RoundResult
from fedfms.training.site import Site

SITES = ("a", "b", "c", "d", "e")
ATTACKER, UNSEEN = "b", "unseen"
LENGTH = 4.0  # of a flipped update, in lengths of the honest one: as long as those of all four others together


class _Flipped(Dataset[Any]):
    """Images with every mask turned round: what is a structure becomes background, and the reverse."""

    def __init__(self, honest: Dataset[Any]) -> None:
        self._honest = honest

    def __len__(self) -> int:
        return len(self._honest)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        sample = dict(self._honest[index])
        return sample | {"label": 1 - sample["label"]}


class LabelFlipper(Site):
    """A site that trains on masks turned round."""

    def _dataset(self, part: str, *, augment: bool = False, round_: int = 0) -> Dataset[Any]:
        honest = super()._dataset(part, augment=augment, round_=round_)
        return _Flipped(honest) if part == "train" else honest


class SignFlipper(Site):
    """A site that sends the way back from what it has learnt, `LENGTH` times as far."""

    def train_round(self, round_: int, received: Tensors, held: Tensors | None = None) -> RoundResult:
        """As an honest site's, but for the update."""
        honest = super().train_round(round_, received, held)
        tensors = {
            name: (received[name] - LENGTH * (tensor - received[name])).to(tensor.dtype)
            for name, tensor in honest.update.tensors.items()
        }
        return replace(honest, update=replace(honest.update, tensors=tensors))


ATTACKS: Mapping[str, type[Site]] = {"none": Site, "sign_flip": SignFlipper, "label_flip": LabelFlipper}


def measure(rules: Sequence[str], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """FedAvg's clean Dice, then a row an attack and rule: `points` of Dice (of 100) from it, and the rounds in which
    the guard has refused the attacker's update.
    """
    clean = run("mean", "none", overrides)
    rows = [clean, *(run(rule, attack, overrides) for attack in list(ATTACKS)[1:] for rule in rules)]
    return [row | {"points": round(100 * (row["dice"] - clean["dice"]), 1)} for row in rows]


def run(combine: str, attack: str, overrides: Sequence[str]) -> dict[str, Any]:
    """One run: Dice of its final model at the site that took no part."""
    study = study_of(combine, overrides)

    def make_site(study: Study, name: str, settings: SiteSettings, folder: Path) -> Site:
        return (ATTACKS[attack] if name == ATTACKER else Site)(study, name, settings, folder)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        done = list(rounds(study, SITES, SiteSettings(), folder, make_site=make_site))
        unseen = Site(study, UNSEEN, SiteSettings(), folder / UNSEEN).evaluate(done[-1].server.shared)
    refused = sum(not each.rows[ATTACKER]["accepted"] for each in done)
    dice = round(unseen["scores"]["dice"], 4)
    return {"attack": attack, "combine": combine, "rounds": len(done), "refused": refused, "dice": dice}


def study_of(combine: str, overrides: Sequence[str] = ()) -> Study:
    """The phantom with five training sites, one of them faulty, and a rule."""
    own = [
        f"sites=[{','.join(SITES)}]", f"held_out=[{UNSEEN}]", "data.phantom_images=12", "data.phantom_px=64",
        "model.input_px=64", "data.augment=none", "train.rounds=6", "train.local_epochs=1", "train.batch_size=2",
        f"federation.aggregation={combine}", "federation.byzantine_sites=1",
    ]  # fmt: skip
    return load_study(find_study("phantom"), overrides=[*own, *overrides])
