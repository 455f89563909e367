"""Files of a site's folder, sorted by role and stem and matched into cases, for published layouts of any depth."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fedfms.preprocessing.raw import sites_where, visible_files
from fedfms.preprocessing.recipe import Found, RawCase

Paths = dict[str, list[Path]]  # by stem, or by role
SEVERAL = "several files of this name"


@dataclass(frozen=True)
class SiteFiles:
    """Files of a site by role ("image", "label", ...) and stem, and the files without a role."""

    roles: defaultdict[str, Paths] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    unused: list[Path] = field(default_factory=list)

    def match(self, make_case: Callable[[str, Paths], RawCase | str]) -> Found:
        """The cases of the site; `make_case(stem, files by role)` returns a case or a fault."""
        stems = sorted(set().union(*self.roles.values()))
        by_stem = {stem: {role: found[stem] for role, found in self.roles.items() if stem in found} for stem in stems}
        return Found.collect(((stem, make_case(stem, files)) for stem, files in by_stem.items()), len(self.unused))


def sort_files(folder: Path, role_of: Callable[[Path], tuple[str, str]]) -> SiteFiles:
    """The files below a site's folder.

    Args:
        role_of: role and stem of a path relative to the folder; ("", "") if the data set does not use the file.

    Raises:
        OSError: a folder cannot be read.
    """
    found = SiteFiles()
    for path in visible_files(folder):
        role, stem = role_of(path.relative_to(folder))
        if role:
            found.roles[role][stem].append(path)
        else:
            found.unused.append(path)
    return found


def sites_with_masks(raw: Path, sort: Callable[[Path], SiteFiles], masks: Iterable[str]) -> list[str]:
    """Names of the folders directly below `raw` that hold images and files with a role in `masks`."""

    def holds(folder: Path) -> bool:
        roles = sort(folder).roles
        return bool(roles["image"]) and any(roles[role] for role in masks)

    return sites_where(raw, holds)
