"""The model card of an export: origin, scores and intended use, without names of sites."""

from pathlib import Path

from jinja2 import StrictUndefined, Template

from fedfms.inference.modelfile import ModelFile
from fedfms.methods import METHODS
from fedfms.reporting.records import read_records
from fedfms.reporting.results import make_results

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_KINDS = {
    "final": "the global model after the last round",
    "last": "the newest global model of an interrupted run",
    "best": "the global model with the best score on the sites' validation images",
    "shared": "the global part of a method that gives each site its own model; private tensors are initial",
    "personal": "one site's own model, trained on its images",
}


def model_card(file: ModelFile, licence: str) -> str:
    """The card, as Markdown."""
    study = file.study
    trained, held_out = file.sites or (len(study.sites), len(study.held_out))
    report = None
    if file.records is not None:
        name = "final" if file.kind in ("shared", "personal") else file.kind
        report = make_results(read_records(file.records))["models"].get(name)
    template = Template(_TEMPLATE.read_text(encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True)
    return template.render(
        file=file, study=study, method=METHODS[study.method], kinds=_KINDS, trained=trained, held_out=held_out,
        report=report, round=file.round if report is None else report["round"], licence=licence,
    )  # fmt: skip
