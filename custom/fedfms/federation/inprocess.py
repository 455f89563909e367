"""The in-process reference: a whole federation in one loop, with no FLARE. What a FLARE run must equal to 1e-6."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fedfms.compression import CODECS, Codec, DownlinkCompressor, in_memory
from fedfms.errors import FedfmsError, TrainingError
from fedfms.federation.gate import DIFFERENCES, WEIGHTS, Expected, Guard, Message, agreed, decoded
from fedfms.federation.state import ServerStateStore
from fedfms.methods import METHODS, POOL, Method, ServerState, Tensors, resolve_study
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.result import RoundResult
from fedfms.training.site import Site
from fedfms.training.state import StateStore


@dataclass(frozen=True)
class CompletedRound:
    """A round: the tensors that each site received, what it made of them, and the server after that.

    `rows`: what became of each site's update, as the guard has it; `results` of a site whose update was refused are
    there all the same, those of a site that failed are not.
    """

    round: int
    received: Mapping[str, Tensors]
    results: Mapping[str, RoundResult]
    server: ServerState
    held_out: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    rows: Mapping[str, dict[str, Any]] = field(default_factory=dict)


Record = Callable[[CompletedRound, ServerState], None]
Post = Callable[[Message], Iterable[Message]]  # what arrives of a message: itself, something else, several, nothing


def _delivered(message: Message) -> Iterable[Message]:
    return (message,)


def rounds(
    study: Study, sites: Sequence[str], settings: SiteSettings, folder: Path, record: Record | None = None,
    *, make_site: Callable[..., Site] = Site, post: Post = _delivered,
) -> Iterator[CompletedRound]:  # fmt: skip
    """Run the study's rounds over `sites` one after another; each keeps its memory under `folder/<site>`, the server
    its own in `folder/server.pt`. A run that was stopped after a round goes on from there.

    Where the method pools the data of all sites, its one training site is `POOL`. A site's fault ends the run, unless
    the study says that fewer sites will do (`federation.min_sites`).

    Args:
        record: told of each round, with the server as it was before it, when that round is not yet on disk: a kill
            after it makes the round anew, and tells of it again.
        make_site, post: another kind of site, and another post than one that delivers: for faults.

    Raises:
        FedfmsError: a site's, with the site and the round; or too few updates are left in a round.
    """
    built, store = build(study, settings), ServerStateStore(folder / "server.pt")
    method, by = built.method, resolve_study(study, built.method).federation
    codec = CODECS.get(by.compression)
    downlink = None if codec is None else DownlinkCompressor(codec, store.mirrors())
    server = store.load() or ServerState(shared=built.shared(), seed=study.seed)
    names = [POOL] if method.centralised else [name for name in sites if name not in study.held_out]
    held_out = [make_site(study, name, settings, folder / name) for name in sites if name in study.held_out]
    training = [make_site(study, name, settings, folder / name) for name in names]
    guard = Guard(min(by.min_sites or len(names), len(names)))
    while server.round < study.train.rounds:
        guard.begin()
        sent = method.dispatch(server, sorted(names))
        if downlink is not None:
            downlink.advance(sent, server.shared)
        results = _answers(training, server.round, sent, downlink, guard, strict=guard.needed == len(names))
        if downlink is not None:
            sent = {name: downlink.received(name) for name in sent}
        for site, result in results.items():
            expected = _expected(method, server, site, sent[site], downlink)
            for message in post(_message(site, server.round, result, expected)):
                guard.take(message, expected, partial(_kept, message, sent[site], codec))
        scores = {site.name: site.evaluate(server.shared) for site in held_out if server.shared}
        after = guard.aggregate(method, server, sent, by)
        done = CompletedRound(server.round, sent, results, after, scores, guard.rows)
        if record is not None:
            record(done, server)
        store.save(after, None if downlink is None else downlink.mirrors)
        yield done
        server = after


def _answers(
    training: Sequence[Site], round_: int, sent: Mapping[str, Tensors], downlink: DownlinkCompressor | None, guard: Guard,
    *, strict: bool,
) -> dict[str, RoundResult]:  # fmt: skip
    """What the sites make of the round, by site; a site's fault goes to the guard, or ends the run where `strict`."""
    results = {}
    for site in training:
        try:
            if downlink is None:
                results[site.name] = site.train_round(round_, sent[site.name])
            else:
                results[site.name] = _over_wire(site, round_, downlink)
        except FedfmsError as error:
            if strict:
                raise
            guard.fail(site.name, round_, error.line())
    return results


def _expected(
    method: Method, server: ServerState, site: str, received: Tensors, downlink: DownlinkCompressor | None
) -> Expected:
    """What a site's message must be, as the aggregator of a federation has it."""
    codec = None if downlink is None else downlink.codec
    whole = agreed(server.shared, list(server.shared), codec)
    own = agreed(server.shared, method.sent_names(server.round, tuple(received)), codec)
    return Expected("", server.round, whole, own, None if downlink is None else downlink.holds(site))


def _kept(message: Message, received: Tensors, codec: Codec | None) -> Tensors:
    return in_memory(decoded(message.arrays, received, codec))


def _message(site: str, round_: int, result: RoundResult, expected: Expected) -> Message:
    """A site's update as it would travel. In one process the site's schema is the server's own."""
    coded, update = result.coded, result.update
    arrays = {name: tensor.numpy() for name, tensor in update.tensors.items()} if coded is None else coded.arrays
    dice = result.scores["dice"] if result.scores else None
    report = {"scores": result.scores, "train_loss": result.train_loss, "seconds": result.seconds}
    return Message(
        sender=site, names=(update.site,), job=expected.job, rounds=(round_,),
        kind=WEIGHTS if coded is None else DIFFERENCES, schema=expected.agreed.hash(), samples=update.samples,
        arrays=arrays, base=None if coded is None else coded.base, dice=dice, report=report,
    )  # fmt: skip


def _over_wire(site: Site, round_: int, downlink: DownlinkCompressor) -> RoundResult:
    """A site's round, with what it receives coded and decoded on the way."""
    assert site.link is not None
    try:
        received = site.link.read(downlink.message(site.name, site.link.claim()))
    except FedfmsError as error:
        raise error.at(f"site {site.name}, round {round_}") from error
    return site.train_round(round_, received.tensors, received.held)


def final_scores(
    study: Study,
    sites: Sequence[str],
    settings: SiteSettings,
    folder: Path,
    server: ServerState,
    name: str | None = None,
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
