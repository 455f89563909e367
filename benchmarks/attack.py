"""Dice with one Byzantine site among five, for each rule of `federation.aggregation`.

Runs the in-process loop on the phantom. Dice is that of the final global model on all images of a site that does not
train, so that the Byzantine site does not score itself.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from fedfms.compression import Download, Payload
from fedfms.federation.inprocess import rounds
from fedfms.methods import Tensors
from fedfms.settings import SiteSettings
from fedfms.study import Study, find_study, load_study
from fedfms.training.result import RoundResult
from fedfms.training.site import Site

SITES = ("a", "b", "c", "d", "e")
BYZANTINE, UNSEEN = "b", "unseen"
LENGTH = 4.0  # of a flipped update, relative to the honest one: the sum of the four others


class _Inverted(Dataset[Any]):
    """Images with inverted masks."""

    def __init__(self, honest: Dataset[Any]) -> None:
        self._honest = honest

    def __len__(self) -> int:
        return len(self._honest)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        sample = dict(self._honest[index])
        return sample | {"label": 1 - sample["label"]}


class LabelFlipper(Site):
    """A site that trains on inverted masks."""

    def _dataset(self, part: str, *, augment: bool = False, round_: int = 0) -> Dataset[Any]:
        honest = super()._dataset(part, augment=augment, round_=round_)
        return _Inverted(honest) if part == "train" else honest


class SignFlipper(Site):
    """A site that sends the negative of its update, `LENGTH` times as long."""

    def train_round(self, round_: int, content: Tensors | Download) -> RoundResult:
        """As an honest site, except for the update."""
        honest = super().train_round(round_, content)
        assert not isinstance(content, Download)
        tensors = {
            name: (content[name] - LENGTH * (tensor - content[name])).to(tensor.dtype)
            for name, tensor in honest.update.tensors.items()
        }
        payload = Payload({name: tensor.numpy() for name, tensor in tensors.items()})
        return replace(honest, update=replace(honest.update, tensors=tensors), payload=payload)


ATTACKS: Mapping[str, type[Site]] = {"none": Site, "sign_flip": SignFlipper, "label_flip": LabelFlipper}


def measure(rules: Sequence[str], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """FedAvg without an attack, then one row per attack and rule.

    `points`: difference in Dice (of 100) to FedAvg without an attack. `rejected`: rounds in which the server rejected
    the Byzantine site's update.
    """
    clean = run("mean", "none", overrides)
    rows = [clean, *(run(rule, attack, overrides) for attack in list(ATTACKS)[1:] for rule in rules)]
    return [row | {"points": round(100 * (row["dice"] - clean["dice"]), 1)} for row in rows]


def run(rule: str, attack: str, overrides: Sequence[str]) -> dict[str, Any]:
    """One run: Dice of its final model at the unseen site."""
    study = make_study(rule, overrides)

    def make_site(study: Study, name: str, settings: SiteSettings, folder: Path) -> Site:
        return (ATTACKS[attack] if name == BYZANTINE else Site)(study, name, settings, folder)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        done = list(rounds(study, SITES, SiteSettings(), folder, make_site=make_site))
        unseen = Site(study, UNSEEN, SiteSettings(), folder / UNSEEN).evaluate(done[-1].server.shared)
    rejected = sum(not each.rows[BYZANTINE]["accepted"] for each in done)
    dice = round(unseen["scores"]["dice"], 4)
    return {"attack": attack, "aggregation": rule, "rounds": len(done), "rejected": rejected, "dice": dice}


def make_study(rule: str, overrides: Sequence[str] = ()) -> Study:
    """The phantom with five training sites, one of them Byzantine, and an aggregation rule."""
    own = [
        f"sites=[{','.join(SITES)}]", f"held_out=[{UNSEEN}]", "data.phantom_images=12", "data.phantom_px=64",
        "model.input_px=64", "data.augment=none", "train.rounds=6", "train.local_epochs=1", "train.batch_size=2",
        f"federation.aggregation={rule}", "federation.byzantine_sites=1",
    ]  # fmt: skip
    return load_study(find_study("phantom"), overrides=[*own, *overrides])
