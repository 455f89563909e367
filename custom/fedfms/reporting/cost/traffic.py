"""What a study will send, before anything is sent: the method's own rules on the model's shapes, round by round."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fedfms.compression import CODECS, layout, nbytes
from fedfms.methods import ServerState, Tensors, required_updates, resolve_study, training_sites
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build_on_meta


@dataclass(frozen=True)
class Traffic:
    """Payload in MB (1e6 bytes): a site's mean in each direction of a round, and that of all rounds and sites.

    As it is on the wire, where each site holds what the server takes it to hold; to one that does not (it has lost its
    state, or comes late) a round's download is whole.
    """

    sites: int
    rounds: int
    up_mb: float
    down_mb: float
    total_mb: float
    parameters: int
    trained: int
    shared: int

    def text(self) -> str:
        """One line for people."""
        rounds = f"{self.rounds} round{'' if self.rounds == 1 else 's'}"
        sites = f"at least {self.sites} site{'' if self.sites == 1 else 's'}"
        return (
            f"{rounds}, {sites}; {self.trained:,} parameters trained, {self.shared:,} shared: {self.up_mb:,.2f} MB up "
            f"and {self.down_mb:,.2f} MB down a site and round, {self.total_mb:,.1f} MB in all"
        )

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def plan(study: Study) -> Traffic:
    """What the sites of a study (as many as a round needs, where it names none) and its server send each other.

    Scores and held-out sites' downloads are not counted; no weights are made and no file is read.

    Raises:
        StudyError: the model or the method of the study cannot be.
    """
    built = build_on_meta(study)
    method = built.method
    shared = shared_tensors(built)
    sites = planned_sites(study)
    codec = CODECS.get(resolve_study(study, method).federation.compression)
    size = {name: nbytes(layout({name: tensor}, codec)) for name, tensor in shared.items()}
    up = down = 0
    for round_ in range(study.train.rounds):
        sent = method.dispatch(ServerState(shared, round_, study.seed), sites)
        down += sum(size[name] for tensors in sent.values() for name in tensors)
        up += sum(size[name] for tensors in sent.values() for name in method.sent_names(round_, tuple(tensors)))
    visits = len(sites) * study.train.rounds
    return Traffic(
        sites=len(sites), rounds=study.train.rounds, up_mb=up / visits / 1e6, down_mb=down / visits / 1e6,
        total_mb=(up + down) / 1e6, parameters=sum(p.numel() for p in built.model.parameters()),
        trained=sum(tensor.numel() for name, tensor in built.own().items() if name in built.partition.trained),
        shared=sum(tensor.numel() for tensor in shared.values()),
    )  # fmt: skip


def planned_sites(study: Study) -> list[str]:
    """Names of the sites that train, sorted: those of the study, or as many as a round needs where it names none."""
    return sorted(training_sites(study)) or [f"site-{index + 1}" for index in range(required_updates(study))]


def shared_tensors(built: BuiltModel) -> Tensors:
    """The shared tensors of an outlined model, which have shapes and no values."""
    own = built.own()
    return {name: own[name].detach() for name in built.partition.shared}


def shared_bytes(study: Study) -> dict[str, int]:
    """Bytes of each tensor that a study shares, by name; no form of the wire takes more.

    Raises:
        StudyError: the model or the method of the study cannot be.
    """
    shared = shared_tensors(build_on_meta(study))
    return {name: tensor.numel() * tensor.element_size() for name, tensor in shared.items()}
