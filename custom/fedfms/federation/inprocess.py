"""A whole federation in one process: a loop over `Site` and `RoundServer`, without NVFLARE.

A run under NVFLARE must equal it to 1e-6.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfms.compression import CODECS
from fedfms.errors import FedfmsError, TrainingError
from fedfms.federation.messages import DIFFERENCES, WEIGHTS, Message
from fedfms.federation.server import RoundServer
from fedfms.federation.state import ServerStateStore
from fedfms.federation.update_schema import Schema
from fedfms.methods import METHODS, POOL, ServerState, Tensors, resolve_study
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.result import RoundResult
from fedfms.training.site import Site
from fedfms.training.state import StateStore


@dataclass(frozen=True)
class CompletedRound:
    """A round that is over.

    Attributes:
        received: the tensors that each training site received.
        results: what each site returned, accepted or not; a site that failed has none.
        server: the server state after the round.
        held_out: scores of the received global model at each held-out site.
        rows: the server's row of each site.
    """

    round: int
    received: Mapping[str, Tensors]
    results: Mapping[str, RoundResult]
    server: ServerState
    held_out: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    rows: Mapping[str, dict[str, Any]] = field(default_factory=dict)


Record = Callable[[CompletedRound, ServerState], None]
Deliver = Callable[[Message], Iterable[Message]]  # what arrives of a message: itself, another, several, nothing


def rounds(
    study: Study, sites: Sequence[str], settings: SiteSettings, folder: Path, record: Record | None = None,
    *, make_site: Callable[..., Site] = Site, deliver: Deliver = lambda message: (message,),
) -> Iterator[CompletedRound]:  # fmt: skip
    """Run the study's rounds over `sites`, one after another; a stopped run resumes after its last round.

    Each site stores its state under `folder/<site>`, the server in `folder/server.pt`. A method that pools the data of
    all sites has one training site, `POOL`. A site's error ends the run, unless the study needs fewer sites
    (`federation.min_sites`).

    Args:
        record: called for each round with the server state before it, before the round is stored: a kill after the
            call repeats the round and the call.
        make_site, deliver: a substitute for the site or the transport, to inject faults.

    Raises:
        FedfmsError: of a site, with the site and the round; or too few updates are left in a round.
    """
    built, store = build(study, settings), ServerStateStore(folder / "server.pt")
    method, study = built.method, resolve_study(study, built.method)
    names = [POOL] if method.centralised else [name for name in sites if name not in study.held_out]
    held_out = [make_site(study, name, settings, folder / name) for name in sites if name in study.held_out]
    training = [make_site(study, name, settings, folder / name) for name in names]
    server = RoundServer(
        study, method, store.load() or ServerState(shared=built.shared(), seed=study.seed), lambda: names,
        min_updates=min(study.federation.min_sites or len(names), len(names)), mirrors=store.mirrors(),
    )  # fmt: skip
    while (before := server.state).round < study.train.rounds:
        server.open_round()
        received: dict[str, Tensors] = {}
        results: dict[str, RoundResult] = {}
        for site in training:
            try:
                dispatch = server.dispatch(site.name, held=site.held_digest())
                assert dispatch is not None  # the site trains, and the round is the current one
                received[site.name] = dispatch.tensors
                results[site.name] = site.train_round(before.round, dispatch.content)
            except FedfmsError as error:
                located = error.at(f"site {site.name}, round {before.round}")
                if server.min_updates == len(names):
                    raise located from error
                server.reject(site.name, before.round, located.line())
        for name, result in results.items():
            for message in deliver(_message(name, before, result, study)):
                server.accept(message)
        scores = {site.name: site.evaluate(before.shared) for site in held_out if before.shared}
        done = CompletedRound(before.round, received, results, server.close(), scores, dict(server.rows))
        if record is not None:
            record(done, before)
        store.save(server.state, server.mirrors)
        yield done


def _message(site: str, server: ServerState, result: RoundResult, study: Study) -> Message:
    """A site's update as it travels; in one process the site's schema is the server's own."""
    codec = CODECS.get(study.federation.compression)
    report = {"scores": result.scores, "train_loss": result.train_loss, "seconds": result.seconds}
    return Message(
        sender=site, round=server.round, names=(result.update.site,), job="", rounds=(server.round,),
        kind=WEIGHTS if result.payload.base is None else DIFFERENCES,
        schema=Schema.of_payload(server.shared, server.shared, codec).hash(), samples=result.update.samples,
        arrays=result.payload.arrays, base=result.payload.base, dice=result.scores["dice"] if result.scores else None,
        report=report,
    )  # fmt: skip


def final_scores(
    study: Study, sites: Sequence[str], settings: SiteSettings, folder: Path, server: ServerState,
    name: str | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Scores of the model that each site would use, as `Site.evaluate` returns them; of pooled data, for each site.

    Where nothing is shared, a held-out site has no model: the sites' own models are scored there, one by one.

    Args:
        name: of the model; the sites store overlays and scores by image under it.
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
    """Scores of other sites' models at a site: `Site.evaluate_others`."""
    return Site(study, site, settings, folder / site).evaluate_others(models, name)


def _own_model(folder: Path) -> Tensors:
    state = StateStore(folder / "state").load()
    if state is None:
        raise TrainingError("there is no model yet: the site has not trained", where=f"site {folder.name}")
    return state.trained
