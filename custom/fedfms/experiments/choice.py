"""The study that a person chooses, on the command line or in Python, resolved for its method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedfms.errors import StudyError
from fedfms.flare.job import with_checkpoint
from fedfms.methods import METHODS, make_method, resolve_study
from fedfms.settings import SiteSettings
from fedfms.study import PHANTOM, PHANTOM_SITES, Study, find_study, load_study
from fedfms.training.build import check_weights


def choose_study(
    name: str, method: str | None = None, *, preset: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (), sites: Sequence[str] | None = None,
    held_out: Sequence[str] | None = None, checkpoint: Path | None = None, named_sites: bool = False, **values: Any,
) -> Study:  # fmt: skip
    """A study, resolved for its method.

    Args:
        name: a YAML file, or the name of a packaged study.
        method: default: the study's.
        preset, overrides, values: as for `fedfms.study.load_study`.
        sites: default: the study's, without the held-out ones.
        checkpoint: the file of pre-trained weights that it starts from.
        named_sites: name the sites of a phantom study that names none, as pooled data always must.

    Raises:
        StudyError: an unknown name, key or method, or a value that is not valid.
        CheckpointError: the checkpoint does not fit the study.
    """
    path = find_study(name)
    if sites is None and held_out:
        sites = _without(held_out, load_study(path, preset=preset, overrides=overrides, **values))
    named = {"method": method, "sites": sites, "held_out": held_out}
    if checkpoint is not None:
        named |= with_checkpoint(checkpoint)
    study = load_study(path, preset=preset, overrides=overrides, **values, **named)
    resolved = make_method(study.method, study.method_options)
    if named_sites or METHODS[study.method].centralised:
        study = name_phantom_sites(study)
    study = resolve_study(study, resolved)
    if checkpoint is not None:  # check now, not later at each site
        check_weights(study, SiteSettings(checkpoints=checkpoint.resolve().parent))
    return study


def name_phantom_sites(study: Study) -> Study:
    """A study with its sites named if it is a phantom study that names none; any other study unchanged."""
    if study.sites or study.data.dataset != PHANTOM:
        return study
    return replace(study, sites=tuple(site for site in PHANTOM_SITES if site not in study.held_out))


def _without(held_out: Sequence[str], study: Study) -> list[str]:
    """The study's training sites except the held-out ones; empty if the study names no sites."""
    remaining = [name for name in study.sites if name not in held_out]
    if study.sites and not remaining:
        raise StudyError("every site is held out", where=study.name, do="leave one that trains")
    return remaining
