"""The in-process reference: a whole federation in one loop, with no FLARE. What a FLARE run must equal to 1e-6."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfms.errors import FedfmsError, TrainingError
from fedfms.methods import METHODS, POOL, Server, Tensors, fitted
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.result import RoundResult
from fedfms.training.server import ServerStore
from fedfms.training.site import Site
from fedfms.training.state import StateStore
from fedfms.wire import CODECS, Downlink


@dataclass(frozen=True)
class ReferenceRound:
    """A round: the tensors that each site received, what it made of them, and the server after that."""

    round: int
    received: Mapping[str, Tensors]
    results: Mapping[str, RoundResult]
    server: Server
    held_out: Mapping[str, dict[str, Any]] = field(default_factory=dict)


Record = Callable[[ReferenceRound, Server], None]


def rounds(
    study: Study, sites: Sequence[str], settings: SiteSettings, folder: Path, record: Record | None = None
) -> Iterator[ReferenceRound]:
    """Run the study's rounds over `sites` one after another; each keeps its memory under `folder/<site>`, the server
    its own in `folder/server.pt`. A run that was stopped after a round goes on from there.

    Where the method pools the data of all sites, its one training site is `POOL`.

    Args:
        record: told of each round, with the server as it was before it, when that round is not yet on disk: a kill
            after it makes the round anew, and tells of it again.
    """
    built, store = build(study, settings), ServerStore(folder / "server.pt")
    method = built.method
    codec = CODECS.get(fitted(study, method).federation.wire)
    downlink = None if codec is None else Downlink(codec, store.mirrors())
    server = store.load() or Server(shared=built.shared(), seed=study.seed)
    names = [POOL] if method.centralised else [name for name in sites if name not in study.held_out]
    held_out = [Site(study, name, settings, folder / name) for name in sites if name in study.held_out]
    training = [Site(study, name, settings, folder / name) for name in names]
    while server.round < study.train.rounds:
        sent = method.dispatch(server, sorted(names))
        if downlink is None:
            results = {site.name: site.train_round(server.round, sent[site.name]) for site in training}
        else:
            downlink.advance(sent, server.shared)
            results = {site.name: _over_wire(site, server.round, downlink) for site in training}
            sent = {name: downlink.received(name) for name in sent}
        scores = {site.name: site.evaluate(server.shared) for site in held_out if server.shared}
        after = method.combine([result.update for result in results.values()], server)
        done = ReferenceRound(server.round, sent, results, after, scores)
        if record is not None:
            record(done, server)
        store.save(after, None if downlink is None else downlink.mirrors)
        yield done
        server = after


def _over_wire(site: Site, round_: int, downlink: Downlink) -> RoundResult:
    """A site's round, with what it receives coded and decoded on the way."""
    assert site.link is not None
    try:
        received = site.link.read(downlink.message(site.name, site.link.claim()))
    except FedfmsError as error:
        raise error.at(f"site {site.name}, round {round_}") from error
    return site.train_round(round_, received.tensors, received.held)


def final_scores(
    study: Study, sites: Sequence[str], settings: SiteSettings, folder: Path, server: Server, name: str | None = None
) -> dict[str, dict[str, Any]]:
    """How the model that each site would use does there, as `Site.evaluate` tells it; of a pool, for each site.

    Where nothing is shared a held-out site has no model: the sites' own are scored there, each by itself.

    `name`, of the model, is that under which the sites keep what they drew and scored of it.
    """
    scores: dict[str, dict[str, Any]] = {}
    if METHODS[study.method].centralised:
        scores = Site(study, POOL, settings, folder / POOL).evaluate(server.shared, name)["by_site"]
        sites = [site for site in sites if site in study.held_out]
    elif not server.shared:
        held_out = [site for site in sites if site in study.held_out]
        sites = [site for site in sites if site not in study.held_out]
        own = [_own_model(folder / site) for site in sites] if held_out else []
        scores = {site: others_scores(study, site, settings, folder, own, name) for site in held_out}
    return scores | {
        site: Site(study, site, settings, folder / site).evaluate(server.per_site.get(site, server.shared), name)
        for site in sites
    }


def others_scores(
    study: Study, site: str, settings: SiteSettings, folder: Path, models: Sequence[Tensors], name: str | None
) -> dict[str, Any]:
    """How models of other sites do at a site: `Site.evaluate_others`."""
    return Site(study, site, settings, folder / site).evaluate_others(models, name)


def _own_model(folder: Path) -> Tensors:
    state = StateStore(folder / "state").load()
    if state is None:
        raise TrainingError("there is no model yet: the site has not trained", where=f"site {folder.name}")
    return state.trained
