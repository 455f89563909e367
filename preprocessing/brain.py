"""Brain tumours in contrast-enhanced T1 MRI: FeTS 2022, whose table of institutions makes the sites.

Sites: the Partition_ID of partitioning_1.csv, as text ("1", "6", "18", "21"): FedFMS's four of the 23.

Layout: the challenge's training data, unpacked into RAW or into one folder in it:
  partitioning_1.csv                            columns Partition_ID, Subject_ID
  FeTS2022_00001/FeTS2022_00001_t1ce.nii.gz     and FeTS2022_00001_seg.nii.gz (or .nii); t1, t2 and flair are
                                                not opened
The data set was not at hand: the layout is as remembered and as public code reads it.

Structure: enhancing-tumour, 1: the stored value 4 (GD-enhancing) against the rest: 0, necrosis 1, oedema 2. Any
other value is a fault: later releases of BraTS number the enhancing part 3. A volume without it stays, for not
every tumour enhances.

Intensity: clipped at the volume's 99th percentile, air included, then linear from its minimum to 0..255.

Options:
  --structure enhancing | core   default enhancing, as the paper says. core: 1 and 4 together, BraTS's "tumour
      core", of the data set "brain-core". FedFMS's published code trains on these two together; the line for 4
      alone stands in it as a comment.
  --channels neighbours | single   default neighbours: the slices before, at and after as three channels, as the
      reference does. At the ends the end slice is repeated; the reference leaves out the first and the last.
  --empty-every N   default 5: of slices without the structure, those whose position is a multiple of N stay, as in
      the reference. 1 keeps all of them. It is so at validation, too: scores per volume are of the slices that
      stay, and a volume put back is empty where none was.
  --depth coarsest | third   default coarsest; with FeTS's 1 mm along every axis both are the third, as in the
      reference.
  --institutions paper | all   default paper: 1, 6, 18, 21; all: every one that the table names.
  --partition 1 | 2   default 1, by institution; 2 is the table in which large ones are split by tumour size.

Patients: a subject is one examination of one person. Some people of other public sets (BraTS, TCGA) are in FeTS.

Raw data: by request at synapse.org/fets (challenge data); the paper does not say which release of 2022.

Licence: nothing here grants any right to the data. The challenge's own terms, which were not read here: check
before you use or pass on anything.

Citations: Pati et al., The Federated Tumor Segmentation (FeTS) Challenge, arXiv 2105.05874, 2021; Reina et al.,
arXiv 2105.06413, 2021 (OpenFL); Bakas et al., Sci Data 4:170117, 2017.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fedfms.data.manifest import LabelClass
from fedfms.data.niftifile import ENDINGS
from fedfms.data.volume import DEPTHS
from fedfms.errors import DataError
from preprocessing.raw import refuse_outside, split_by_access
from preprocessing.recipe import Found, RawCase, Recipe
from preprocessing.volumes import ValueRule, VolumeReader

NAME = "brain"
HELP = "enhancing brain tumour in T1ce MRI: FeTS 2022 by institution"
SITES = ("1", "6", "18", "21")
_COLUMNS = ("Partition_ID", "Subject_ID")
_FILES = {"image": "_t1ce", "label": "_seg"}
_STRUCTURES = {
    "enhancing": (NAME, "enhancing-tumour", {1: 0, 2: 0, 4: 1}),
    "core": (f"{NAME}-core", "tumour-core", {1: 1, 2: 0, 4: 1}),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this data set's options."""
    parser.add_argument("--structure", choices=tuple(_STRUCTURES), default="enhancing", help="default enhancing")
    parser.add_argument("--channels", choices=("neighbours", "single"), default="neighbours", help="default neighbours")
    parser.add_argument("--empty-every", type=_above_zero, default=5, metavar="N", help="default 5; 1 = all")
    parser.add_argument("--depth", choices=DEPTHS, default=DEPTHS[0], help=f"default {DEPTHS[0]}")
    parser.add_argument("--institutions", choices=("paper", "all"), default="paper", help="default paper: 1, 6, 18, 21")
    parser.add_argument("--partition", choices=("1", "2"), default="1", help="default 1: partitioning_1.csv")


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The data set under the chosen options."""
    dataset, structure, values = _STRUCTURES[arguments.structure]
    table = f"partitioning_{arguments.partition}.csv"
    return Recipe(
        dataset=dataset,
        structures=(LabelClass(structure, 1),),
        sites=Institutions(table, None if arguments.institutions == "all" else SITES),
        find=SubjectFinder(table),
        read=VolumeReader(
            ValueRule(values, required=False),
            depth=arguments.depth,
            neighbours=arguments.channels == "neighbours",
            empty_every=arguments.empty_every,
        ),
        options={
            "structure": arguments.structure,
            "channels": arguments.channels,
            "empty-every": str(arguments.empty_every),
            "depth": arguments.depth,
            "partition": arguments.partition,
        },
    )


def _above_zero(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError("must be a number in 1..1000")
    return int(text)


@dataclass(frozen=True)
class Institutions:
    """The sites that a table names; of these, only those in `chosen`, if it is given."""

    table: str
    chosen: tuple[str, ...] | None = None

    def __call__(self, raw: Path) -> list[str]:
        """As `Recipe.sites`.

        Raises:
            DataError: no table, several, or one of other columns. Fault: it lies outside `raw`.
        """
        named = {site for site, _ in _read(_find_table(raw, self.table))}
        return sorted(named if self.chosen is None else named & set(self.chosen), key=lambda site: (len(site), site))


@dataclass(frozen=True)
class SubjectFinder:
    """Subjects of a site by a table, their T1ce as "image" and their segmentation as "label"."""

    table: str

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`. Folders of subjects that the table does not name are counted, not converted.

        Raises:
            DataError: as `Institutions`; OSError: a folder cannot be read.
        """
        table = _find_table(raw, self.table)
        rows = _read(table)
        times = Counter(subject for _, subject in rows)
        cases: dict[str, RawCase] = {}
        faults: list[tuple[str, str]] = []
        for subject in dict.fromkeys(subject for where, subject in rows if where == site):
            if times[subject] > 1:
                # at two sites, one person would be trained on at one and validated on at the other
                faults.append((subject, f"{self.table} names the case {times[subject]} times"))
                continue
            files = _files(table.parent, subject)
            fault = _fault(files)
            if fault:
                faults.append((subject, fault))
            else:
                cases[subject] = RawCase(subject, subject, {role: paths[0] for role, paths in files.items()})
        folders, _ = split_by_access(table.parent)
        unnamed = sum(path.name not in times and any(_files(table.parent, path.name).values()) for path in folders)
        return Found(cases, tuple(faults), unnamed)


def _find_table(raw: Path, name: str) -> Path:
    """The table in `raw` or in one folder of it."""
    folders, _ = split_by_access(raw)
    found = [folder / name for folder in (raw, *folders) if (folder / name).is_file()]
    if len(found) != 1:
        what = f"{len(found)} files {name}" if found else f"no {name}"
        raise DataError(f"there is {what} in --raw or a folder in it", do="put the challenge's table beside its cases")
    refuse_outside(raw.resolve(), found)
    return found[0]


def _read(table: Path) -> list[tuple[str, str]]:
    """Rows of (site, subject)."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            do = "take the challenge's own table"
            raise DataError(f"the table of institutions has no columns {' and '.join(_COLUMNS)}", do=do)
        rows = [tuple((row[column] or "").strip() for column in _COLUMNS) for row in reader]
    return [(site, subject) for site, subject in rows if site and subject]


def _files(folder: Path, subject: str) -> dict[str, list[Path]]:
    """Files that are there of a subject, by role; none for a subject that is no plain name."""
    plain = Path(subject).name == subject and subject not in (".", "..")
    names = {role: [f"{subject}{suffix}{ending}" for ending in ENDINGS] for role, suffix in _FILES.items()}
    return {
        role: [folder / subject / name for name in of_role if plain and (folder / subject / name).is_file()]
        for role, of_role in names.items()
    }


def _fault(files: dict[str, list[Path]]) -> str:
    """Why files make no case; "" if they do."""
    if not any(files.values()):
        return "the table names a case of which there are no files"
    if not files["label"]:
        return "the volume has no segmentation"
    if not files["image"]:
        return "the segmentation has no volume"
    return "several files of this name" if any(len(paths) > 1 for paths in files.values()) else ""
