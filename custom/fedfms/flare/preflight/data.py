"""Checks of what the study reads at the site: images and weights. No row names a case, a file or a folder."""

from __future__ import annotations

from collections.abc import Callable

from fedfms.data.source import FolderSource, Item
from fedfms.errors import DataError
from fedfms.flare.preflight.context import Context, Finding, fail, ok, warn
from fedfms.models.checkpoints import verify
from fedfms.study import PHANTOM
from fedfms.training.build import checkpoint_path

_SAMPLE = 20  # slices, evenly over all
_CHECK = "`python -m preprocessing check` on the data root names them"


def images(context: Context) -> Finding:
    """The manifest fits the study and the files fit the manifest: all by size, a sample (or all) by hash and label
    values; enough images are in each part."""
    study, parts, seen, bad, looked = context.study, dict[str, int](), "", 0, 0
    for site in context.images:
        for part, items in site.parts.items():
            parts[part] = parts.get(part, 0) + len(items)
        chosen = site.items if context.full else _spread(site.items)
        bad, looked = bad + _bad(chosen, site.source.read), looked + len(chosen)
        if study.data.max_unreadable_images and isinstance(
            site.source, FolderSource
        ):  # else opening it has looked at all
            rest = [item for item in site.parts["all"] if item not in chosen]
            bad, looked = bad + _bad(rest, site.source.look), looked + len(rest)
    scored = context.images[0].scored
    seen = ", ".join(f"{part} {count}" for part, count in parts.items())
    if bad > study.data.max_unreadable_images:
        return fail(f"{bad} of {looked} slices looked at are damaged, or not those of the manifest", _CHECK)
    if not parts["train"] and not context.held_out:
        return fail(f"no image to train on; {seen}", "convert more cases; or the lead holds this site out")
    least = max(study.federation.min_cases, context.settings.min_cases)
    if parts[scored] < least:
        return warn(f"{seen}; no score of under {least} images leaves", "tell the lead: this site will have no score")
    if study.data.dataset == PHANTOM:
        return ok(f"the embedded phantom: {seen}")
    if bad:
        return warn(f"{seen}; {bad} of {looked} slices looked at are damaged and will be left out", _CHECK)
    values = ", ".join(f"{one.name} {list(one.values)}" for one in study.data.structures)
    return ok(f"{seen}; {looked} slices read, hashes right; label values: {values}")


def _spread(items: list[Item]) -> list[Item]:
    """At most `_SAMPLE` of them, evenly."""
    count = min(_SAMPLE, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _bad(items: list[Item], read: Callable[[Item], object]) -> int:
    found = 0
    for item in items:
        try:
            read(item)
        except DataError:  # its text names the case
            found += 1
    return found


def weights(context: Context) -> Finding:
    """The file of weights that the study starts from is there, by the study's hash and the site's own."""
    spec = context.study.model
    path = checkpoint_path(context.study, context.settings)
    if path is None:
        return ok("the study starts from random weights")
    verify(path, sha256=spec.checkpoint_sha256)
    if spec.checkpoint_sha256 is None:
        return warn(f"{spec.checkpoint}: there; the study names no hash", "the lead builds the job with --checkpoint")
    own = ", and the site accepts it" if context.settings.checkpoint_sha256 else ""
    return ok(f"{spec.checkpoint}: its SHA-256 {spec.checkpoint_sha256[:12]}... is the study's{own}")
