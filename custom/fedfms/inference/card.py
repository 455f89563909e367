"""The model card of an export: what the model is, how good it was, what it may be used for; no site by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedfms.inference.modelfile import ModelFile
from fedfms.methods import METHODS
from fedfms.reporting.records import read_records
from fedfms.reporting.results import make_results

_KINDS = {
    "final": "the global model after the last round",
    "last": "the global model of a run that was cut: the newest",
    "best": "the global model that did best on the sites' validation images",
    "shared": "the global part of a method that gives each site a model of its own; what is private is as it began",
    "personal": "one site's own model, trained on its images as no other is",
}
_USE = """\
## Intended use

Research. This is not a medical device: nobody has cleared it for diagnosis or treatment, and a mask is a suggestion
that a person with training must check. On images of other scanners, hospitals or populations than those that it was
trained on it may be worse than any number here.
"""


def model_card(file: ModelFile, licence: str) -> str:
    """The card, as Markdown."""
    study, method = file.study, METHODS[file.study.method]
    trained, held_out = file.sites if file.sites is not None else (len(study.sites), len(study.held_out))
    sites = f"{trained} trained it" if trained else "number of sites that trained it: not told"
    sites += f", {held_out} more only scored it" if held_out else ""
    means = _means(file)
    round_ = file.round if means is None else means["round"]
    lines = [
        f"# {study.title or study.name}: {file.kind} model", "",
        f"- Study: {study.name}{f' ({study.title})' if study.title else ''}, data set `{study.data.dataset}`",
        f"- Kind: {file.kind}: {_KINDS[file.kind]}",
        f"- Structures: {', '.join(f'{s.name} (label values {list(s.values)})' for s in study.data.structures)}",
        f"- Method: {study.method} ({method.paper})",
        f"- Backbone: {study.model.backbone} at {study.model.input_px} px, from {study.model.initial_weights}",
        f"- Sites: {sites}",
        f"- Rounds: {'not told' if round_ is None else round_} of {study.train.rounds}",
        f"- Licence: {licence}", "",
        "## Scores", "", *_scores(means, study.structure_names), "", _USE,
    ]  # fmt: skip
    return "\n".join(lines)


def _means(file: ModelFile) -> Mapping[str, Any] | None:
    """The report's numbers of this model, if the run's records are there and tell of it."""
    if file.records is None:
        return None
    name = {"shared": "final", "personal": "final"}.get(file.kind, file.kind)
    found: Mapping[str, Any] | None = make_results(read_records(file.records))["models"].get(name)
    return found


def _scores(means: Mapping[str, Any] | None, structures: Sequence[str]) -> list[str]:
    if means is None:
        return ["The run's records were not there when this was exported."]
    rows = []
    for key, what in (("mean", "that train"), ("mean_held_out", "held out")):
        mean = means[key]
        if not mean["scored"]:
            continue
        for name in structures:
            entry = mean["by_structure"]["standard"][name]
            rows.append(f"| {what} | {mean['scored']} | {name} | {_number(entry['dice'])} | {_number(entry['iou'])} |")
    if not rows:
        return ["No site told of any."]
    head = ["Plain means over sites, each on its own images that did not train the model.", ""]
    return [*head, "| sites | number | structure | Dice | IoU |", "|---|---|---|---|---|", *rows]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
