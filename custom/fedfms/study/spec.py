"""A study: what to train, on which data, how, and for how long. Validated on construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fedfms.errors import StudyError
from fedfms.names import NAME_RULE, is_name
from fedfms.schema import STRICT, Float, parse
from fedfms.study.aggregation import AggregationRule, too_few_updates

PHANTOM = "phantom"
PHANTOM_SITES = ("site-1", "site-2", "site-3")  # of a phantom study that names no sites

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[Float, Field(gt=0)]
Decay = Annotated[Float, Field(ge=0, lt=1)]
LABEL_VALUES = range(1, 256)  # 0 is the background


@dataclass(frozen=True, config=STRICT)
class Structure:
    """One structure to segment."""

    name: str
    values: tuple[int, ...] = (1,)
    """Label values of the data set that belong to it."""

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values) or not set(self.values) <= set(LABEL_VALUES):
            raise StudyError(
                f"structure {self.name!r} has values {list(self.values)}",
                do="distinct label values from 1 to 255, at least one; 0 is the background",
            )


@dataclass(frozen=True, config=STRICT)
class DataSpec:
    """The data, and how they become batches."""

    dataset: str = PHANTOM
    structures: tuple[Structure, ...] = (Structure("structure"),)
    protocol: Literal["held-out", "personal"] = "held-out"
    """held-out: 9:1 training and validation. personal: 8:2 training and test."""
    max_images: Count | None = None
    """Maximum number of images per site, chosen by seed and patient; null: all."""
    max_unreadable_images: Annotated[int, Field(ge=0)] = 0
    """Maximum number of unreadable images to skip at a site; more are an error."""
    crop_px: Count | None = None
    """Side of a random square crop in training, at native resolution; null: no crop."""
    augment: Literal["none", "flip", "photometric", "nnunet"] = "none"
    """photometric: flips, gamma, gain, offset, colour and noise. nnunet: see `fedfms.data.augmentation`."""
    cache: bool = True
    """Cache decoded slices in memory, and outputs of a frozen prefix on the site's disk."""
    cache_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the cached outputs. bfloat16 takes half the disk, and rounds them to 8 bits."""
    phantom_images: Count = 56
    """Images per site of the phantom. A tenth of 56 is enough to report scores (`federation.min_cases`)."""
    phantom_px: Count = 128
    phantom_shift: Literal["look", "strong"] = "look"
    """look: sites differ in appearance. strong: also in polarity and colours."""

    def __post_init__(self) -> None:
        names = [structure.name for structure in self.structures]
        if not names or len(set(names)) != len(names):
            raise StudyError("structures must have distinct names, at least one")
        if not is_name(self.dataset):
            raise StudyError(f"{self.dataset!r} is not a name", do=NAME_RULE)

    @property
    def few_views(self) -> bool:
        """Whether training sees each image in few forms, whose features can be cached: unchanged, or flipped."""
        return self.crop_px is None and self.augment in ("none", "flip")


@dataclass(frozen=True, config=STRICT)
class ModelSpec:
    """The network, and its initial weights."""

    backbone: str = "vit_b"
    input_px: Count = 1024
    stem: Literal["auto", "mobile_sam", "lite_medsam"] = "auto"
    """tiny_vit only. auto: lite_medsam up to 256 px."""
    head: Literal["auto", "token", "conv"] = "auto"
    """auto: token for one structure, conv for more."""
    prompt: Literal["auto", "none", "whole_image", "learned"] = "auto"
    """Constant prompt tokens of SAM's decoder (`fedfms.models.prompt`). none: FedFMS's text. whole_image: a box around
    the whole image, by the checkpoint's prompt encoder, frozen. learned: these, trained with the decoder. auto:
    whole_image with a checkpoint, whose decoder was trained with prompts, else none."""
    normalise: Literal["none", "sam"] = "none"
    """none: pixels in 0..1. sam: SAM's pixel mean and standard deviation."""
    window_pad: Literal["sam", "reference"] = "sam"
    """sam: pad windows after norm1. reference: before norm1, as the public code of FedFMS does."""
    adapter_blocks: Annotated[str, Field(pattern=r"^(all|none|last:[1-9][0-9]*)$")] = "all"
    """all; last:N, the N transformer blocks next to the decoder; none: a method that trains adapters and decoder trains
    the decoder alone. What precedes the first adapter is computed once per image, and cached (`data.cache`)."""
    adapter_ratio: Positive = 0.25
    adapter_act: Literal["relu", "gelu"] = "relu"
    adapter_init: Literal["zero", "reference"] = "zero"
    """zero: round 0 is the pre-trained function. reference: torch's default."""
    checkpoint: str | None = None
    """A file name in the site's checkpoint folder; null: random weights."""
    checkpoint_sha256: str | None = None

    def __post_init__(self) -> None:
        name = self.checkpoint
        if name is not None and (not name or Path(name).name != name or name in (".", "..")):
            raise StudyError(
                "model.checkpoint must be a file name, not a path",
                do="set the folder in the site's settings (`checkpoints`)",
            )

    @property
    def prompt_tokens(self) -> Literal["none", "whole_image", "learned"]:
        """`prompt`, with auto resolved."""
        if self.prompt != "auto":
            return self.prompt
        return "none" if self.checkpoint is None else "whole_image"

    def adapted_blocks(self, depth: int) -> int:
        """Number of transformer blocks with adapters, of an encoder with `depth` blocks.

        Raises:
            StudyError: `adapter_blocks` names more blocks than there are.
        """
        if self.adapter_blocks in ("all", "none"):
            return depth if self.adapter_blocks == "all" else 0
        count = int(self.adapter_blocks.removeprefix("last:"))
        if count > depth:
            what = f"adapter_blocks is {self.adapter_blocks}, but {self.backbone} has {depth} blocks"
            raise StudyError(what, where="model", do=f"from last:1 to last:{depth}")
        return count

    @property
    def initial_weights(self) -> str:
        """A description of the initial weights."""
        return self.checkpoint or "random weights"


@dataclass(frozen=True, config=STRICT)
class TrainSpec:
    """Local training."""

    rounds: Count = 100
    local_epochs: Count = 1
    batch_size: Count = 6
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: Positive = 1e-4
    lr_schedule: Literal["constant", "cosine", "poly"] = "constant"
    """Learning rate over the study; see `fedfms.methods.schedule`."""
    lr_by: Literal["round", "step"] = "round"
    """Whether the learning rate changes after each round, or also at each step within a round."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of a site in which the learning rate rises linearly to its schedule."""
    encoder_lr_decay: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate per transformer block, counted from the decoder: where the encoder itself is trained,
    its lower blocks learn slower."""
    clip_norm: Positive | None = None
    """Maximum norm of a step's gradients, over all trained tensors; null: no limit."""
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    loss: Literal["bce", "dice_bce"] = "bce"
    pos_weight: Positive = 2.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass; float16 on CUDA only. Loss, sums and trained tensors remain float32."""


@dataclass(frozen=True, config=STRICT)
class FederationSpec:
    """The sites that a round needs, the server's timeouts, and the aggregation."""

    min_sites: Count | None = None
    """Updates that a round needs; null: all named sites, or two if no site is named."""
    required_sites: tuple[str, ...] = ()
    """A run without them is not valid (`fedfms.reporting.results`)."""
    straggler_timeout_s: Annotated[int, Field(ge=0)] = 3600
    """Wait for the remaining sites, once min_sites have answered."""
    round_timeout_s: Count = 86_400
    """Maximum duration of a round. A site that never answers ends a round, not the study."""
    min_cases: Count = 5
    """Suppress scores over fewer images; a site's settings can raise the minimum."""
    compression: Literal["none", "bfloat16", "float16", "int8"] = "none"
    """Codec of the shared tensors in training; see `fedfms.compression`."""
    aggregation: AggregationRule = "mean"
    """The aggregation rule; see `fedfms.federation.robust`."""
    byzantine_sites: Count = 1
    """Number of Byzantine sites that an aggregation rule other than the mean must tolerate."""
    max_share: Positive | None = None
    """Maximum weight of one site, as a share of a round's samples; null: no limit."""
    norm_factor: Float | None = 10.0
    """Maximum norm of an update, relative to the median norm; null: no limit."""
    norm_action: Literal["reject", "clip"] = "reject"
    """What to do with an update above that norm."""
    tracking: Literal["tensorboard", "mlflow", "none"] = "tensorboard"
    """Where the server writes live curves."""

    def __post_init__(self) -> None:
        if self.max_share is not None and self.max_share > 1:
            raise StudyError(f"federation.max_share is {self.max_share!r}", do="1 at most")
        if self.norm_factor is not None and self.norm_factor < 1:
            what = f"federation.norm_factor is {self.norm_factor!r}"
            raise StudyError(what, do="1 or more, so that the median update itself is accepted")
        if len(set(self.required_sites)) != len(self.required_sites):
            raise StudyError("federation.required_sites names a site twice")


@dataclass(frozen=True, config=STRICT)
class Study:
    """All parameters of a run, except those of a site (`fedfms.settings`)."""

    name: str
    title: str = ""
    method: str = "fedmsa"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    seed: Annotated[int, Field(ge=0)] = 0
    sites: tuple[str, ...] = ()
    """Sites that train; empty: those that participate in the run."""
    held_out: tuple[str, ...] = ()
    """Sites that do not train, but score each global model on all their data."""
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    federation: FederationSpec = FederationSpec()

    def __post_init__(self) -> None:
        _check_sites(self)
        if self.model.head == "token" and len(self.data.structures) > 1:
            what = f"head 'token' makes one mask, but there are {len(self.data.structures)} structures"
            raise StudyError(what, where=self.name, do="use 'conv'")
        rule = self.federation.aggregation
        if reason := too_few_updates(rule, self.federation.byzantine_sites, self.min_sites):
            raise StudyError(
                f"federation.aggregation: {reason}", where=self.name,
                do="raise federation.min_sites, name more sites, or lower federation.byzantine_sites",
            )  # fmt: skip

    @property
    def structure_names(self) -> tuple[str, ...]:
        """Names of the structures, in the order of the model's output channels."""
        return tuple(structure.name for structure in self.data.structures)

    @property
    def min_sites(self) -> int:
        """Updates that a round needs: see `FederationSpec.min_sites`."""
        return self.federation.min_sites or len(self.sites) or 2

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as in a job's JSON; the inverse of `Study.from_dict`."""
        plain: dict[str, Any] = _STUDY.dump_python(self, mode="json")
        return plain

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Study:
        """The study that `raw` describes.

        Raises:
            StudyError: an unknown key, a value of the wrong type, or values that contradict each other.
        """
        return parse(cls, raw, StudyError, where=str(raw.get("name", "study")))


_STUDY = TypeAdapter(Study)


def _check_sites(study: Study) -> None:
    federation = study.federation
    for name in (*study.sites, *study.held_out, *federation.required_sites):
        if not is_name(name):
            raise StudyError(f"{name!r} is not a name", where=study.name, do=NAME_RULE)
    if len(set(study.sites)) != len(study.sites):
        raise StudyError("a site is named twice", where=study.name)
    if both := sorted(set(study.sites) & set(study.held_out)):
        raise StudyError(f"sites {both} both train and are held out", where=study.name, do="name them once")
    needed = federation.min_sites
    if needed is not None and study.sites and needed > len(study.sites):
        what = f"federation.min_sites is {needed}, but {len(study.sites)} sites train"
        raise StudyError(what, where=study.name, do="name more sites, or lower federation.min_sites")
    required = set(federation.required_sites)
    if odd := sorted(required - set(study.sites) if study.sites else required & set(study.held_out)):
        what = f"federation.required_sites names {odd}, which do not train"
        raise StudyError(what, where=study.name, do="name sites that train")
