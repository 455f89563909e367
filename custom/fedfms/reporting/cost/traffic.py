"""The traffic of a study before it runs: the method's own rules applied to the model's shapes, round by round."""

from dataclasses import asdict, dataclass

from fedfms.compression import CODECS, layout, nbytes
from fedfms.methods import ServerState, Tensors, required_updates, resolve_study, training_sites
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build_on_meta


@dataclass(frozen=True)
class Traffic:
    """Compressed payload in MB (1e6 bytes): mean per site and round in each direction, and of all sites and rounds.

    It assumes that each site holds the state that the server expects. A site that lost its state, or joins late,
    downloads all shared tensors once.
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


def plan_traffic(study: Study) -> Traffic:
    """The traffic between the server and the training sites; if the study names none, as many as a round needs.

    Scores and downloads of held-out sites are not counted. No weights are created and no file is read.

    Raises:
        StudyError: the study's model or method is not valid.
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
    """The training sites, sorted; if the study names none, generated names for as many as a round needs."""
    return sorted(training_sites(study)) or [f"site-{index + 1}" for index in range(required_updates(study))]


def shared_tensors(built: BuiltModel) -> Tensors:
    """The shared tensors of a meta-device model, which have shapes and no values."""
    own = built.own()
    return {name: own[name].detach() for name in built.partition.shared}


def shared_bytes(study: Study) -> dict[str, int]:
    """Uncompressed bytes of each shared tensor, by name; a codec never needs more.

    Raises:
        StudyError: the study's model or method is not valid.
    """
    shared = shared_tensors(build_on_meta(study))
    return {name: tensor.numel() * tensor.element_size() for name, tensor in shared.items()}
