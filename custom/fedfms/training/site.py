"""One site of a study: it receives shared tensors, scores and trains them on its own data, and remembers the rest.

Used alike by the in-process reference loop and by the FLARE executor. All that a round needs from the one before
is on disk (`StateStore`), because a FLARE simulator with fewer threads than sites makes a new process for every task.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from fedfms.compression import CODECS
from fedfms.data import SiteData, open_site
from fedfms.data.damaged import RECORD, read_record, write_record
from fedfms.data.pool import PooledData, open_pool
from fedfms.errors import DataError, TrainingError
from fedfms.methods import METHODS, SiteContext, Tensors, Update, make_method, resolve_study
from fedfms.rng import rng, torch_rng
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build
from fedfms.training.cpu_tuning import giving_back
from fedfms.training.disclosure import suppress_small_cells
from fedfms.training.error_context import error_context
from fedfms.training.learner import SiteLearner
from fedfms.training.link import Link, Received
from fedfms.training.metrics import Scores, merge
from fedfms.training.prefix import PrefixCache
from fedfms.training.result import RoundResult
from fedfms.training.site_outputs import OVERLAYS, draw, save_scores
from fedfms.training.state import SiteState, StateStore, save_model
from fedfms.training.trainer import Aborted, Stop, Trainer, batches, never


class Site:
    """A study's site with its data, its model and its memory in `folder` (the run's own folder at the site)."""

    def __init__(self, study: Study, name: str, settings: SiteSettings, folder: Path, stop: Stop = never) -> None:
        self.study = resolve_study(study, make_method(study.method, study.method_options))
        self.name = name
        self.held_out = name in study.held_out
        self.pooled = METHODS[study.method].centralised and not self.held_out
        self._settings = settings
        self._folder = folder
        self._store = StateStore(folder / "state")
        self._stop = stop

    @cached_property
    def data(self) -> SiteData | PooledData:
        """The site's images; opened when first asked for, so that a fault becomes an error of that task."""
        path = self._folder / RECORD
        known = read_record(path)
        data: SiteData | PooledData
        if self.pooled:
            data = open_pool(self.study, self.study.sites, self._settings, known, self._go_on)
        else:
            data = open_site(self.study, self.name, self._settings, known.get(self.name, ()), self._go_on)
        write_record(path, {member.site: member.damaged for member in _members(data)})
        return data

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

    @cached_property
    def _initial(self) -> Tensors:
        """All trained tensors as they begin, before anything is loaded into the model."""
        return self.built.trained()

    @cached_property
    def link(self) -> Link | None:
        """The site's end of a compressed wire; None where tensors travel as they are."""
        codec = CODECS.get(self.study.federation.compression)
        return None if codec is None else Link(codec, self.built, self._initial, self._store)

    @property
    def quiet(self) -> bool:
        """Whether the site lets no live curves leave it."""
        return self._settings.quiet

    @property
    def _min_cases(self) -> int:
        return max(self.study.federation.min_cases, self._settings.min_cases)

    @property
    def samples(self) -> int:
        """Slices that this site trains on."""
        return len(self.data.parts["train"])

    def train_round(self, round_: int, received: Tensors, held: Tensors | None = None) -> RoundResult:
        """Score the received model, train it for the study's local epochs, remember the state, return the update.

        `held`: all that the site now holds of the shared tensors (`Link.read`), where the wire is compressed.

        Raises:
            FedfmsError: with the site and the round in `where`.
        """
        with self._told(f"site {self.name}, round {round_}"):
            return self._train_round(round_, Received(received, received if held is None else held))

    @contextmanager
    def _told(self, where: str) -> Iterator[None]:
        """Faults inside are told with their place (`error_context`); after one of the data, the next task opens them anew."""
        try:
            with giving_back(), error_context(where):
                yield
        except DataError:
            self.__dict__.pop("data", None)
            raise

    def _go_on(self) -> None:
        if self._stop():
            raise Aborted

    def _train_round(self, round_: int, message: Received) -> RoundResult:
        started, received = time.monotonic(), message.tensors
        if not self.samples:
            raise TrainingError("there is no image to train on", do="give it more cases, or hold the site out")
        self.built.check_received(received)
        waited, opened = self._trainer.waited_s, time.monotonic() - started
        before = self._store.load(before=round_)
        if before is not None:
            self._trainer.most = before.micro_batch
        start = self.built.method.receive(self._at_site(round_, before), received)
        self.built.load(start.tensors)
        scores = [part.result() for part in self._score().values()]
        optimizer = self._trainer.optimizer(round_, None if before is None else before.optimizer)
        loss = self._fit(round_, optimizer, received)
        trained = self.built.trained()
        dice = [before.best_dice if before else None, merge(scores)["dice"] if scores else None]
        best = max((value for value in dice if value is not None), default=None)
        most = self._trainer.most
        state = SiteState(round_, trained, optimizer.state_dict(), best, start.memory, micro_batch=most)
        packed, coded = self.built.method.outgoing(round_, trained, received), None
        if self.link is not None:
            coded, packed, state = self.link.write(packed, message, state, before)
        self._store.save(state)
        told = self._together([suppress_small_cells(part, self._min_cases) for part in scores])
        told_loss = loss if self.samples >= self._min_cases else None
        seconds, loaded = time.monotonic() - started, opened + self._trainer.waited_s - waited
        update = Update(self.name, packed, self.samples)
        return RoundResult(update, told, told_loss, seconds, loaded, self.data.unreadable_images, coded)

    def _at_site(self, round_: int, before: SiteState | None) -> SiteContext:
        own, memory = (self._initial, {}) if before is None else (before.trained, before.memory)
        return SiteContext(
            round_, self.samples, own, memory, SiteLearner(self._trainer, self.built, self._sample, round_)
        )

    def _sample(self, share: float, round_: int, purpose: str) -> Iterable[Any]:
        """Batches of a random share of the training slices, as they lie on disk."""
        draw = rng(self.study.seed, self.name, round_, purpose)
        count = max(1, round(share * self.samples))
        chosen = sorted(draw.permutation(self.samples)[:count].tolist())
        return batches(Subset(self._dataset("train"), chosen), self.study.train.batch_size)

    def _fit(self, round_: int, optimizer: torch.optim.Optimizer, received: Tensors) -> float:
        data, built = self.study.data, self.built
        augmented = data.augment != "none" or data.crop_px is not None
        built.train_only({*received, *built.partition.private})
        built.method.before_training(built.model, round_, received)
        try:
            return self._epochs(round_, optimizer, received, augmented)
        finally:  # a task that is stopped midway leaves the model whole for the next one
            built.method.after_training(built.model)
            built.train_only(built.partition.trained)
            built.model.zero_grad(set_to_none=True)

    def _epochs(self, round_: int, optimizer: torch.optim.Optimizer, received: Tensors, augmented: bool) -> float:
        spec, loss = self.study.train, 0.0
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

    def evaluate(self, received: Tensors, overlays: str | None = None) -> dict[str, Any]:
        """Score a global model on the site's validation images (all images at a held-out site).

        Args:
            received: shared tensors; private ones are the site's newest.
            overlays: a name under which to draw a few images, truths and predictions into the site's own folder,
                and to save there the scores of every image, and the model that is the site's own, if the method makes
                such.

        Returns:
            {"scores": ..., "part": "val" | "test" | "all", "images": n, "unreadable_images": left out, "held_out": bool}, and
            where the data of several sites are pooled "by_site": the same of each. As far as it may leave the site
            (`fedfms.training.disclosure`).

        Raises:
            FedfmsError: with the site in `where`.
        """
        with self._told(f"site {self.name}"):
            self.built.check_received(received)
            # Only a model of the site's own holds more than was received; the state is large, with the optimizer's.
            state = self._store.load() if self.built.method.personal else None
            own, memory = (self._initial, {}) if state is None else (state.trained, state.memory)
            self.built.load(self.built.method.personal_model(own, memory, received))
            scores = self._score()
            if overlays is not None:
                self._keep(overlays, scores)
        return self._tell(scores)

    def evaluate_others(self, models: Sequence[Tensors], name: str | None = None) -> dict[str, Any]:
        """As `evaluate`, of models that other sites made, each by itself: means over them, image by image.

        Args:
            models: all trained tensors of each; at least one.
            name: under which the scores of every image are kept at the site.

        Raises:
            FedfmsError: with the site in `where`.
        """
        several = []
        with self._told(f"site {self.name}"):
            for tensors in models:
                self.built.load(tensors)
                several.append(self._score())
            scores = {site: Scores.mean([each[site] for each in several]) for site in several[0]}
            if name is not None:
                for part in scores.values():
                    save_scores(self._folder, self.study, name, self.data.scored_part, part)
        return self._tell(scores)

    def _tell(self, scores: Mapping[str, Scores]) -> dict[str, Any]:
        told = {site: suppress_small_cells(part.result(), self._min_cases) for site, part in scores.items()}
        whole = self._report(self.data, self._together(list(told.values())))
        each = {member.site: self._report(member, told.get(member.site)) for member in _members(self.data)}
        return whole | ({"by_site": each} if self.pooled else {})

    def _report(self, data: SiteData | PooledData, told: dict[str, Any] | None) -> dict[str, Any]:
        part = data.scored_part
        counts = {"images": len(data.parts[part]), "unreadable_images": data.unreadable_images}
        return {"scores": told, "part": part, **counts, "held_out": self.held_out}

    def _together(self, told: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """All members' scores, as far as they may leave: where one's are suppressed, the whole would give them away."""
        return suppress_small_cells(merge(told), self._min_cases) if told else None

    def local_model(self) -> Tensors:
        """The shared tensors as this site last trained them.

        Raises:
            TrainingError: it has not trained yet.
        """
        state = self._store.load()
        if state is None:
            raise TrainingError("there is no model yet: the site has not trained", where=f"site {self.name}")
        return {name: state.trained[name] for name in self.built.partition.shared}

    def _score(self) -> dict[str, Scores]:
        """How the model does at each of the members that have images to score it on; cases are one member's own."""
        scores, model = {}, self.built.model
        for data in _members(self.data):
            if data.parts[data.scored_part]:
                part, input_px, mask_px = data.scored_part, model.input_px, model.mask_px
                dataset = data.dataset(part, input_px=input_px, mask_px=mask_px, go_on=self._go_on)
                loader = batches(dataset, self.study.train.batch_size)
                # Some slices of a case are no volume.
                scores[data.site] = self._trainer.score(loader, whole_cases=data.whole_cases(part))
        return scores

    def _keep(self, model_name: str, scores: Mapping[str, Scores]) -> None:
        """Put into the site's own folder what is for its own eyes: overlays, scores by image, a model of its own."""
        scored = self.data.scored_part
        count = min(OVERLAYS, len(self.data.parts[scored]))
        draw(self._folder, self.study, model_name, self._trainer, batches(self._dataset(scored), 1), count)
        for site, part in scores.items():
            folder = self._folder / site if self.pooled else self._folder
            save_scores(folder, self.study, model_name, scored, part)
        if self.built.method.personal and not self.held_out:
            save_model(self._folder / "models" / f"personal_{model_name}.pt", self.study, self.built.trained())

    def _dataset(self, part: str, *, augment: bool = False, round_: int = 0) -> Dataset[Any]:
        sizes = {"input_px": self.built.model.input_px, "mask_px": self.built.model.mask_px}
        return self.data.dataset(part, **sizes, augment=augment, round_=round_, go_on=self._go_on)


def _members(data: SiteData | PooledData) -> tuple[SiteData, ...]:
    """The data of each site that is pooled here, or of the one alone."""
    return data.members if isinstance(data, PooledData) else (data,)
