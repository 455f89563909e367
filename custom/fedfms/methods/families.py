"""Which study a method makes of a study: the one place where a method of another family gets its own backbone."""

from __future__ import annotations

import dataclasses

from fedfms.errors import StudyError
from fedfms.methods.base import Method
from fedfms.models import FAMILIES, counterpart, family_of
from fedfms.study import ModelSpec, Study


def resolve_study(study: Study, method: Method) -> Study:
    """The study as its method takes it; of such a study, itself.

    Studies name SAM backbones. A method of another family takes its own in its place, without the study's checkpoint,
    which is SAM's: `unet` for any but `vit_tiny`, whose stand-in is `unet_tiny`. What else the method sets
    (`Method.adapt_study`) follows. Pooled data go over no wire and
    combine with nothing: it is float32 there, and the mean. `fedfms job build` writes the result into
    the job.

    Raises:
        StudyError: an unknown backbone, or one that the method does not train; a rule in place of a mean that the
            method does not take.
    """
    federation = study.federation
    if method.centralised:
        federation = dataclasses.replace(federation, compression="none", aggregation="mean")
    elif federation.aggregation != "mean" and not method.aggregates_by_mean:
        raise StudyError(
            f"it takes no weighted mean, in whose place federation.aggregation puts {federation.aggregation}",
            where=f"method {method.name}", do="set federation.aggregation to mean, or choose a method that averages",
        )  # fmt: skip
    return method.adapt_study(dataclasses.replace(study, model=model_of(study.model, method), federation=federation))


def model_of(spec: ModelSpec, method: Method) -> ModelSpec:
    """The model section that the method takes: see `resolve_study`."""
    family = family_of(spec.backbone)
    if family == method.family:
        return spec
    if family != "sam":
        raise StudyError(
            f"it does not train backbone {spec.backbone}", where=f"method {method.name}",
            do=f"set model.backbone to one of {sorted(FAMILIES[method.family])}",
        )  # fmt: skip
    own = counterpart(method.family, spec.backbone)
    return dataclasses.replace(spec, backbone=own, checkpoint=None, checkpoint_sha256=None)
