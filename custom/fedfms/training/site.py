"""One site: it receives shared tensors, scores and trains them on its own data, and stores what is private.

The in-process loop and the NVFLARE executor use the same class. All that a round needs from the one before is on disk
(`StateStore`): NVFLARE's simulator starts a new process for every task when it has fewer threads than sites.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from fedfms.compression import CODECS, Download
from fedfms.data import SiteData, open_site
from fedfms.data.damaged import RECORD, read_record, write_record
from fedfms.data.pool import PooledData, members_of, open_pool
from fedfms.errors import DataError, TrainingError
from fedfms.methods import METHODS, SiteContext, Tensors, Update, make_method, resolve_study
from fedfms.rng import rng, torch_rng
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build
from fedfms.training.cpu_tuning import releasing_memory
from fedfms.training.disclosure import suppress_small_cells
from fedfms.training.error_context import error_context
from fedfms.training.exchange import Exchange
from fedfms.training.local_data import SiteLocalData
from fedfms.training.metrics import Scores, merge
from fedfms.training.prefix import PrefixCache
from fedfms.training.result import RoundResult
from fedfms.training.site_outputs import OVERLAYS, save_overlays, save_scores
from fedfms.training.state import SiteState, StateStore, save_model
from fedfms.training.trainer import Aborted, Stop, Trainer, batches, never


class Site:
    """A site of a study: its data, its model, and its stored state in `folder` (the run's folder at the site)."""

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
        """The site's images; opened at first use, so that an error belongs to the task that needs them."""
        path = self._folder / RECORD
        known = read_record(path)
        data: SiteData | PooledData
        if self.pooled:
            data = open_pool(self.study, self.study.sites, self._settings, known, self._check_stop)
        else:
            data = open_site(self.study, self.name, self._settings, known.get(self.name, ()), self._check_stop)
        write_record(path, {member.site: member.damaged for member in members_of(data)})
        return data

    @cached_property
    def built(self) -> BuiltModel:
        """The site's model."""
        return build(self.study, self._settings)

    @cached_property
    def _trainer(self) -> Trainer:
        folder = (self._settings.cache or self._folder / "cache") / "prefix"
        cache = PrefixCache.of(self.built, self.study.data, folder, self._settings.cache_mb)
        return Trainer(self.built, self.study.train, self.study.structure_names, cache, self._stop)

    @cached_property
    def _initial(self) -> Tensors:
        """All trained tensors before anything is loaded into the model."""
        return self.built.trained()

    @cached_property
    def exchange(self) -> Exchange:
        """Encodes and decodes what the site exchanges with the server."""
        return Exchange(CODECS.get(self.study.federation.compression), self.built, self._initial, self._store)

    def held_digest(self) -> str:
        """See `Exchange.held_digest`."""
        return self.exchange.held_digest()

    @property
    def live_metrics(self) -> bool:
        """Whether live curves may leave the site."""
        return self._settings.live_metrics

    @property
    def _min_cases(self) -> int:
        return max(self.study.federation.min_cases, self._settings.min_cases)

    @property
    def samples(self) -> int:
        """Slices that this site trains on."""
        return len(self.data.parts["train"])

    def train_round(self, round_: int, content: Tensors | Download) -> RoundResult:
        """Score what the server sent, train it for the study's local epochs, store the state, return the update.

        Raises:
            FedfmsError: with the site and the round in `where`.
        """
        with self._error_context(f"site {self.name}, round {round_}"):
            return self._train_round(round_, content)

    @contextmanager
    def _error_context(self, where: str) -> Iterator[None]:
        """As `error_context`; after an error of the data, the next task opens them again."""
        try:
            with releasing_memory(), error_context(where):
                yield
        except DataError:
            self.__dict__.pop("data", None)
            raise

    def _check_stop(self) -> None:
        if self._stop():
            raise Aborted

    def _train_round(self, round_: int, content: Tensors | Download) -> RoundResult:
        started = time.monotonic()
        if not self.samples:
            raise TrainingError("there is no image to train on", do="give it more cases, or hold the site out")
        received = self.exchange.decode(content)
        waited, opened = self._trainer.waited_s, time.monotonic() - started
        before = self._store.load(before=round_)
        if before is not None:
            self._trainer.max_slices = before.micro_batch
        begin = self.built.method.on_receive(self._context(round_, before), received.tensors)
        self.built.load(begin.tensors)
        scores = [part.result() for part in self._score().values()]
        optimizer = self._trainer.optimizer(round_, None if before is None else before.optimizer)
        loss = self._fit(round_, optimizer, received.tensors)
        trained = self.built.trained()
        dice = [before.best_dice if before else None, merge(scores)["dice"] if scores else None]
        state = SiteState(
            round_, trained, optimizer.state_dict(), max((value for value in dice if value is not None), default=None),
            begin.stored, micro_batch=self._trainer.max_slices,
        )  # fmt: skip
        outgoing = self.built.method.outgoing(round_, trained, received.tensors)
        sent = self.exchange.encode(outgoing, received, state, before)
        self._store.save(sent.state)
        return RoundResult(
            Update(self.name, sent.tensors, self.samples),
            sent.payload,
            self._merged([suppress_small_cells(part, self._min_cases) for part in scores]),
            loss if self.samples >= self._min_cases else None,
            seconds=time.monotonic() - started,
            load_s=opened + self._trainer.waited_s - waited,
            unreadable_images=self.data.unreadable_images,
        )

    def _context(self, round_: int, before: SiteState | None) -> SiteContext:
        own, stored = (self._initial, {}) if before is None else (before.trained, before.stored)
        local_data = SiteLocalData(self._trainer, self.built, self._sample, round_)
        return SiteContext(round_, self.samples, own, stored, local_data)

    def _sample(self, share: float, round_: int, purpose: str) -> Iterable[Any]:
        """Batches of a random share of the training slices, not augmented."""
        draw = rng(self.study.seed, self.name, round_, purpose)
        count = max(1, round(share * self.samples))
        chosen = sorted(draw.permutation(self.samples)[:count].tolist())
        return batches(Subset(self._dataset("train"), chosen), self.study.train.batch_size)

    def _fit(self, round_: int, optimizer: torch.optim.Optimizer, received: Tensors) -> float:
        built = self.built
        built.train_only({*received, *built.partition.private})
        built.method.before_training(built.model, round_, received)
        try:
            return self._epochs(round_, optimizer, received)
        finally:  # a stopped task leaves the model usable for the next one
            built.method.after_training(built.model)
            built.train_only(built.partition.trained)
            built.model.zero_grad(set_to_none=True)

    def _epochs(self, round_: int, optimizer: torch.optim.Optimizer, received: Tensors) -> float:
        spec, loss = self.study.train, 0.0
        steps = spec.local_epochs * math.ceil(self.samples / spec.batch_size)
        rates = self._trainer.learning_rates(round_, steps)
        for epoch in range(round_ * spec.local_epochs, (round_ + 1) * spec.local_epochs):
            loader = batches(
                self._dataset("train", augment=True, round_=epoch),
                spec.batch_size,
                workers=self._settings.workers,
                shuffle=torch_rng(self.study.seed, self.name, epoch, "shuffle"),
            )
            loss = self._trainer.epoch(loader, optimizer, received, rates)
        return loss

    def evaluate(self, received: Tensors, overlays: str | None = None) -> dict[str, Any]:
        """Score a global model on the site's validation images (all images at a held-out site).

        Args:
            received: shared tensors; private ones are the site's newest.
            overlays: name of the model. The site then stores overlays of a few images, the scores of every image, and
                its personal model, if the method makes one.

        Returns:
            {"scores", "part": "val" | "test" | "all", "images": n, "unreadable_images": skipped, "held_out"};
            where the data of several sites are pooled, also "by_site": the same of each. All of it may leave the site
            (`fedfms.training.disclosure`).

        Raises:
            FedfmsError: with the site in `where`.
        """
        with self._error_context(f"site {self.name}"):
            self.built.check_received(received)
            # Only a personal model has more than was received; the state is large, since it holds the optimizer's.
            state = self._store.load() if self.built.method.personal else None
            own, stored = (self._initial, {}) if state is None else (state.trained, state.stored)
            self.built.load(self.built.method.personal_model(own, stored, received))
            scores = self._score()
            if overlays is not None:
                self._store_outputs(overlays, scores)
        return self._evaluation(scores)

    def evaluate_others(self, models: Sequence[Tensors], name: str | None = None) -> dict[str, Any]:
        """As `evaluate`, of models that other sites made: each is scored, and the scores are averaged by image.

        Args:
            models: all trained tensors of each; at least one.
            name: of the model; the site stores the scores of every image under it.

        Raises:
            FedfmsError: with the site in `where`.
        """
        several = []
        with self._error_context(f"site {self.name}"):
            for tensors in models:
                self.built.load(tensors)
                several.append(self._score())
            scores = {site: Scores.mean([each[site] for each in several]) for site in several[0]}
            if name is not None:
                for part in scores.values():
                    save_scores(self._folder, self.study, name, self.data.scored_part, part)
        return self._evaluation(scores)

    def _evaluation(self, scores: Mapping[str, Scores]) -> dict[str, Any]:
        public = {site: suppress_small_cells(part.result(), self._min_cases) for site, part in scores.items()}
        whole = self._report(self.data, self._merged(list(public.values())))
        each = {member.site: self._report(member, public.get(member.site)) for member in members_of(self.data)}
        return whole | ({"by_site": each} if self.pooled else {})

    def _report(self, data: SiteData | PooledData, scores: dict[str, Any] | None) -> dict[str, Any]:
        part = data.scored_part
        counts = {"images": len(data.parts[part]), "unreadable_images": data.unreadable_images}
        return {"scores": scores, "part": part, **counts, "held_out": self.held_out}

    def _merged(self, public: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Scores of all members. Where one member's are suppressed, the whole would reveal them, and is suppressed."""
        return suppress_small_cells(merge(public), self._min_cases) if public else None

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
        """Scores of the model at each member that has images to score."""
        scores, model = {}, self.built.model
        for data in members_of(self.data):
            if data.parts[data.scored_part]:
                part, input_px, mask_px = data.scored_part, model.input_px, model.mask_px
                dataset = data.dataset(part, input_px=input_px, mask_px=mask_px, check_stop=self._check_stop)
                loader = batches(dataset, self.study.train.batch_size)
                # Volume scores need all slices of a case.
                scores[data.site] = self._trainer.score(loader, whole_cases=data.whole_cases(part))
        return scores

    def _store_outputs(self, model_name: str, scores: Mapping[str, Scores]) -> None:
        """Store what only the site may see: overlays, scores by image, a personal model."""
        scored = self.data.scored_part
        count = min(OVERLAYS, len(self.data.parts[scored]))
        save_overlays(self._folder, self.study, model_name, self._trainer, batches(self._dataset(scored), 1), count)
        for site, part in scores.items():
            folder = self._folder / site if self.pooled else self._folder
            save_scores(folder, self.study, model_name, scored, part)
        if self.built.method.personal and not self.held_out:
            save_model(self._folder / "models" / f"personal_{model_name}.pt", self.study, self.built.trained())

    def _dataset(self, part: str, *, augment: bool = False, round_: int = 0) -> Dataset[Any]:
        sizes = {"input_px": self.built.model.input_px, "mask_px": self.built.model.mask_px}
        return self.data.dataset(part, **sizes, augment=augment, round_=round_, check_stop=self._check_stop)
