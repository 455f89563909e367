"""Checks of the site's images and weights. No row shows a case, a file or a folder."""

from collections.abc import Callable

from fedfms.data.source import FolderSource, Item
from fedfms.errors import DataError
from fedfms.flare.preflight.context import Context, Finding, fail, ok, warn
from fedfms.models.checkpoints import verify
from fedfms.study import PHANTOM
from fedfms.training.build import checkpoint_path

_SAMPLE = 20  # slices, evenly spaced
_LIST_THEM = "`fedfms prepare check` on the data root lists them"


def images(context: Context) -> Finding:
    """The manifest fits the study, the files fit the manifest (sizes of all; hashes and label values of a sample, or of
    all), and each split has enough images.
    """
    study, parts, damaged, checked = context.study, dict[str, int](), 0, 0
    for site in context.images:
        for part, items in site.parts.items():
            parts[part] = parts.get(part, 0) + len(items)
        chosen = site.items if context.full else _sample(site.items)
        damaged, checked = damaged + _damaged(chosen, site.source.read), checked + len(chosen)
        if study.data.max_unreadable_images and isinstance(site.source, FolderSource):  # else opening checks all sizes
            rest = [item for item in site.parts["all"] if item not in chosen]
            damaged, checked = damaged + _damaged(rest, site.source.check_size), checked + len(rest)
    scored = context.images[0].scored
    seen = ", ".join(f"{part} {count}" for part, count in parts.items())
    bad = f"{damaged} of {checked} checked slices are damaged"
    if damaged > study.data.max_unreadable_images:
        return fail(f"{bad}, or differ from the manifest", _LIST_THEM)
    if not parts["train"] and not context.held_out:
        return fail(f"no image to train on; {seen}", "convert more cases; or the lead makes this a held-out site")
    least = max(study.federation.min_cases, context.settings.min_cases)
    if parts[scored] < least:
        what = f"{seen}; scores over fewer than {least} images are suppressed"
        return warn(what, "inform the lead: this site will have no score")
    if study.data.dataset == PHANTOM:
        return ok(f"built-in phantom: {seen}")
    if damaged:
        return warn(f"{seen}; {bad} and will be skipped", _LIST_THEM)
    values = ", ".join(f"{one.name} {list(one.values)}" for one in study.data.structures)
    return ok(f"{seen}; {checked} slices read, all hashes match; label values: {values}")


def _sample(items: list[Item]) -> list[Item]:
    """Up to `_SAMPLE` items, evenly spaced."""
    count = min(_SAMPLE, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _damaged(items: list[Item], read: Callable[[Item], object]) -> int:
    found = 0
    for item in items:
        try:
            read(item)
        except DataError:  # its text names the case
            found += 1
    return found


def weights(context: Context) -> Finding:
    """The weight file that the study starts from exists, with the SHA-256 of the study and of the site's settings."""
    spec = context.study.model
    path = checkpoint_path(context.study, context.settings)
    if path is None:
        return ok("the study starts from random weights")
    verify(path, sha256=spec.checkpoint_sha256)
    if spec.checkpoint_sha256 is None:
        do = "the lead builds the job with --checkpoint"
        return warn(f"{spec.checkpoint} exists; the study names no hash", do)
    own = ", and the site accepts it" if context.settings.checkpoint_sha256 else ""
    return ok(f"{spec.checkpoint}: its SHA-256 {spec.checkpoint_sha256[:12]}... is the study's{own}")
