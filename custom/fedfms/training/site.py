"""One site of a study: it receives shared tensors, scores and trains them on its own data, and remembers the rest.

Used alike by the in-process reference loop and by the FLARE executor. All that a round needs from the one before
is on disk (`StateStore`), because a FLARE simulator with fewer threads than sites makes a new process for every task.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from fedfms.data import SiteData, open_site
from fedfms.errors import FedfmsError, TrainingError
from fedfms.files import write_atomic
from fedfms.methods import Tensors, Update
from fedfms.report.overlay import overlay_png
from fedfms.rng import torch_rng
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build
from fedfms.training.prefix import PrefixCache
from fedfms.training.state import SiteState, StateStore
from fedfms.training.trainer import Stop, Trainer, batches, never

_OVERLAYS = 4


@dataclass(frozen=True)
class RoundResult:
    """What a site has to say after a round: its update, and how the model that it received did on its own data."""

    update: Update
    scores: dict[str, Any] | None  # of the received model, on the validation images; None where there are none
    train_loss: float
    seconds: float


class Site:
    """A study's site with its data, its model and its memory in `folder` (the run's own folder at the site)."""

    def __init__(self, study: Study, name: str, settings: SiteSettings, folder: Path, stop: Stop = never) -> None:
        self.study = study
        self.name = name
        self.held_out = name in study.held_out
        self._settings = settings
        self._folder = folder
        self._store = StateStore(folder / "state")
        self._stop = stop

    @cached_property
    def data(self) -> SiteData:
        """The site's images; opened when first asked for, so that a fault becomes an error of that task."""
        return open_site(self.study, self.name, self._settings)

    @cached_property
    def built(self) -> BuiltModel:
        """The site's model."""
        return build(self.study, self._settings)

    @cached_property
    def _trainer(self) -> Trainer:
        cache = None
        if self.study.data.cache and PrefixCache.applies(self.built):
            cache = PrefixCache(self.built, (self._settings.cache or self._folder / "cache") / "prefix")
        return Trainer(self.built, self.study.train, self.study.structure_names, cache, self._stop)

    @property
    def samples(self) -> int:
        """Slices that this site trains on."""
        return len(self.data.parts["train"])

    def train_round(self, round_: int, received: Tensors) -> RoundResult:
        """Score the received model, train it for the study's local epochs, remember the state, return the update.

        Raises:
            FedfmsError: with the site and the round in `where`.
        """
        try:
            return self._train_round(round_, received)
        except FedfmsError as error:
            raise error.at(f"site {self.name}, round {round_}") from error

    def _train_round(self, round_: int, received: Tensors) -> RoundResult:
        started = time.monotonic()
        if not self.samples:
            raise TrainingError("there is no image to train on", do="give it more cases, or hold the site out")
        before = self._store.load(before=round_)
        self.built.load(self.built.method.unpack(received, self._private(before)))
        scores = self._score()
        optimizer = self._trainer.optimizer(None if before is None else before.optimizer)
        loss = self._fit(round_, optimizer, received)
        trained = self.built.trained()
        self._remember(round_, trained, optimizer, scores, before)
        update = Update(self.name, self.built.method.pack(trained, self.built.partition), self.samples)
        return RoundResult(update, scores, loss, time.monotonic() - started)

    def _private(self, state: SiteState | None) -> Tensors:
        """The site's private tensors: as it last trained them, or as they begin."""
        source = self.built.trained() if state is None else state.trained
        return {name: source[name] for name in self.built.partition.private}

    def _fit(self, round_: int, optimizer: torch.optim.Optimizer, received: Tensors) -> float:
        spec, data = self.study.train, self.study.data
        augmented = data.augment != "none" or data.crop_px is not None
        loss = 0.0
        for epoch in range(spec.local_epochs):
            step = round_ * spec.local_epochs + epoch
            loader = batches(
                self._dataset("train", augment=augmented, round_=step),
                spec.batch_size,
                workers=self._settings.workers,
                shuffle=torch_rng(self.study.seed, self.name, step, "shuffle"),
            )
            loss = self._trainer.epoch(loader, optimizer, received, cached=not augmented)
        return loss

    def _remember(
        self,
        round_: int,
        trained: Tensors,
        optimizer: torch.optim.Optimizer,
        scores: dict[str, Any] | None,
        before: SiteState | None,
    ) -> None:
        best = before.best_dice if before else None
        dice = scores["dice"] if scores else None
        if dice is not None and (best is None or dice > best):
            best = dice
        self._store.save(SiteState(round_, trained, optimizer.state_dict(), best))

    def evaluate(self, received: Tensors, overlays: str | None = None) -> dict[str, Any]:
        """Score a global model on the site's validation images (all images at a held-out site).

        Args:
            received: shared tensors; private ones are the site's newest.
            overlays: a name under which to draw a few images, truths and predictions into the site's own folder.

        Returns:
            {"scores": ..., "part": "val" | "test" | "all", "images": n, "held_out": bool}

        Raises:
            FedfmsError: with the site in `where`.
        """
        try:
            state = self._store.load() if self.built.partition.private else None
            self.built.load({**self._private(state), **received})
            scores = self._score()
            if overlays is not None:
                self._draw(overlays)
        except FedfmsError as error:
            raise error.at(f"site {self.name}") from error
        part = self.data.scored_part
        return {"scores": scores, "part": part, "images": len(self.data.parts[part]), "held_out": self.held_out}

    def local_model(self) -> Tensors:
        """The shared tensors as this site last trained them.

        Raises:
            TrainingError: it has not trained yet.
        """
        state = self._store.load()
        if state is None:
            raise TrainingError("there is no model yet: the site has not trained", where=f"site {self.name}")
        return self.built.method.pack(state.trained, self.built.partition)

    def _score(self) -> dict[str, Any] | None:
        part = self.data.scored_part
        if not self.data.parts[part]:
            return None
        return self._trainer.score(batches(self._dataset(part), self.study.train.batch_size))

    def _draw(self, model_name: str) -> None:
        dataset = self._dataset(self.data.scored_part)
        count = min(_OVERLAYS, len(self.data.parts[self.data.scored_part]))
        folder = self._folder / "overlays"
        folder.mkdir(parents=True, exist_ok=True)
        for index, batch in zip(range(count), batches(dataset, 1), strict=False):
            masks = self._trainer.predict(batch)[0]
            png = overlay_png(batch["image"][0], batch["label"][0] > 0, masks, self.study.structure_names)
            write_atomic(folder / f"{model_name}_{index}.png", png, mode=0o600)

    def _dataset(self, part: str, *, augment: bool = False, round_: int = 0) -> Dataset[Any]:
        model = self.built.model
        return self.data.dataset(part, input_px=model.input_px, mask_px=model.mask_px, augment=augment, round_=round_)
