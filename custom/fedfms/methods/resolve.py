"""Resolves a study for its method: the one place where a method of another family gets its own backbone."""

import dataclasses

from fedfms.errors import StudyError
from fedfms.methods.base import Method
from fedfms.models import FAMILIES, family_of, replacement_backbone
from fedfms.study import ModelSpec, Study


def resolve_study(study: Study, method: Method) -> Study:
    """The study as its method runs it; a resolved study is returned unchanged. `fedfms job build` writes it.

    Studies name SAM backbones. A method of another family takes its family's default backbone instead (its small one
    for SAM's small one), without the study's checkpoint, which is SAM's. `Method.adapt_study` then sets what else the
    method requires. A centralised method neither compresses nor aggregates.

    Raises:
        StudyError: an unknown backbone, or one that the method does not train; an aggregation rule that the method
            does not support.
    """
    federation = study.federation
    if method.centralised:
        federation = dataclasses.replace(federation, compression="none", aggregation="mean")
    elif federation.aggregation != "mean" and not method.aggregates_by_mean:
        raise StudyError(
            f"it does not aggregate by a weighted mean, which federation.aggregation {federation.aggregation} replaces",
            where=f"method {method.name}", do="set federation.aggregation to mean, or choose a method that averages",
        )  # fmt: skip
    return method.adapt_study(dataclasses.replace(study, model=_model(study.model, method), federation=federation))


def _model(spec: ModelSpec, method: Method) -> ModelSpec:
    family = family_of(spec.backbone)
    if family == method.family:
        # What `auto` means is recorded, as an exported model names no checkpoint.
        prompt = spec.prompt_tokens if family == "sam" else "none"
        return dataclasses.replace(spec, prompt=prompt)
    if family != "sam":
        raise StudyError(
            f"it does not train backbone {spec.backbone}", where=f"method {method.name}",
            do=f"set model.backbone to one of {sorted(FAMILIES[method.family].backbones)}",
        )  # fmt: skip
    own = replacement_backbone(method.family, spec.backbone)
    return dataclasses.replace(spec, backbone=own, checkpoint=None, checkpoint_sha256=None, prompt="none")
