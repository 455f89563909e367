"""Brain tumours in contrast-enhanced T1 MRI: FeTS 2022, with the sites of its table of institutions.

Sites: the Partition_ID of partitioning_1.csv, as text ("1", "6", "18", "21"): FedFMS's four of the 23.

Layout: the training data of the challenge, unpacked into RAW or into one folder in it:
  partitioning_1.csv                            columns Partition_ID, Subject_ID
  FeTS2022_00001/FeTS2022_00001_t1ce.nii.gz     and FeTS2022_00001_seg.nii.gz (or .nii); t1, t2 and flair are
                                                not opened
The data set was not available here: the layout is from memory and from public code.

Structure: enhancing-tumour, 1: the stored value 4 (GD-enhancing) against 0, necrosis (1) and oedema (2). Other values
are a fault, because later releases of BraTS store the enhancing part as 3. A volume without the structure is converted,
because not every tumour enhances.

Intensity: clipped at the volume's 99th percentile, including air, then scaled linearly from its minimum to 0..255.

Options:
  --structure enhancing | core   default enhancing, as in the paper. core: 1 and 4 together, the "tumour core" of BraTS,
      as data set "brain-core". The published code of FedFMS trains on these two together; the line for 4 alone is
      commented out.
  --channels neighbours | single   default neighbours: the slices before, at and after a position as three channels, as
      in the reference. The end slices are repeated; the reference omits the first and the last slice.
  --empty-every N   default 5: of the slices without the structure, those at a multiple of N are included, as in the
      reference. 1 includes all. This also applies to validation: scores per volume count the included slices only, and
      a reassembled volume is empty at the others.
  --depth coarsest | third   default coarsest. With the 1 mm of FeTS along every axis, both are the third axis, as in
      the reference.
  --institutions paper | all   default paper: 1, 6, 18, 21. all: every one in the table.
  --partition 1 | 2   default 1, by institution. 2 is the table that splits large institutions by tumour size.

Patients: a subject is one examination of one person. Some people of other public sets (BraTS, TCGA) are in FeTS.

Raw data: on request at synapse.org/fets (challenge data). The paper does not name the release of 2022.

Licence: this software grants no right to the data. The terms of the challenge apply; they were not verified. Check them
before you use or share anything.

Citations: Pati et al., The Federated Tumor Segmentation (FeTS) Challenge, arXiv 2105.05874, 2021; Reina et al.,
arXiv 2105.06413, 2021 (OpenFL); Bakas et al., Sci Data 4:170117, 2017.
"""

import argparse
import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fedfms.data.manifest import LabelClass
from fedfms.data.niftifile import ENDINGS
from fedfms.data.volume import DEPTHS
from fedfms.errors import DataError
from fedfms.preprocessing.raw import reject_outside, split_by_access
from fedfms.preprocessing.recipe import Found, RawCase, Recipe, add_choice, chosen, number_in
from fedfms.preprocessing.sitefiles import Paths
from fedfms.preprocessing.volumes import ValueRule, VolumeReader, match_volume

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
    add_choice(parser, "--structure", tuple(_STRUCTURES))
    add_choice(parser, "--channels", ("neighbours", "single"))
    parser.add_argument("--empty-every", type=number_in(1, 1000), default=5, metavar="N", help="default 5; 1: all")
    add_choice(parser, "--depth", DEPTHS)
    add_choice(parser, "--institutions", ("paper", "all"))
    add_choice(parser, "--partition", ("1", "2"))


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
        options=chosen(arguments, "structure", "channels", "empty_every", "depth", "partition"),
    )


@dataclass(frozen=True)
class Institutions:
    """The sites in a table of institutions."""

    table: str
    chosen: tuple[str, ...] | None = None  # other sites of the table are left out; None: no restriction

    def __call__(self, raw: Path) -> list[str]:
        """As `Recipe.sites`; no table, several tables or other columns are an error."""
        named = {site for site, _ in _read(_find_table(raw, self.table))}
        return sorted(named if self.chosen is None else named & set(self.chosen), key=lambda site: (len(site), site))


@dataclass(frozen=True)
class SubjectFinder:
    """Subjects of a site by a table, with T1ce as "image" and the segmentation as "label"."""

    table: str

    def __call__(self, raw: Path, site: str) -> Found:
        """As `Recipe.find`. Folders of subjects that the table does not name are counted, not converted."""
        table = _find_table(raw, self.table)
        rows = _read(table)
        times = Counter(subject for _, subject in rows)
        folders, _ = split_by_access(table.parent)
        unnamed = sum(path.name not in times and bool(_files(table.parent, path.name)) for path in folders)
        subjects = dict.fromkeys(subject for where, subject in rows if where == site)
        return Found.collect(((one, self._match(table.parent, one, times[one])) for one in subjects), unnamed)

    def _match(self, folder: Path, subject: str, times: int) -> RawCase | str:
        if times > 1:
            # at two sites, one person could be in training at one and in validation at the other
            return f"{self.table} names the case {times} times"
        files = _files(folder, subject)
        return match_volume(subject, files) if files else "the table names a case without files"


def _find_table(raw: Path, name: str) -> Path:
    """The table in `raw` or in one folder of it."""
    folders, _ = split_by_access(raw)
    found = [folder / name for folder in (raw, *folders) if (folder / name).is_file()]
    if len(found) != 1:
        what = f"{len(found)} files {name}" if found else f"no {name}"
        raise DataError(f"there is {what} in --raw or a folder in it", do="put the challenge's table with its cases")
    reject_outside(raw.resolve(), found)
    return found[0]


def _read(table: Path) -> list[tuple[str, str]]:
    """Rows of (site, subject)."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            do = "use the table of the challenge"
            raise DataError(f"the table of institutions has no columns {' and '.join(_COLUMNS)}", do=do)
        rows = [tuple((row[column] or "").strip() for column in _COLUMNS) for row in reader]
    return [(site, subject) for site, subject in rows if site and subject]


def _files(folder: Path, subject: str) -> Paths:
    """Existing files of a subject by role; none for a subject that is a path instead of a name."""
    if Path(subject).name != subject or subject in (".", ".."):
        return {}
    paths = {role: [folder / subject / f"{subject}{suffix}{e}" for e in ENDINGS] for role, suffix in _FILES.items()}
    existing = {role: [path for path in candidates if path.is_file()] for role, candidates in paths.items()}
    return {role: found for role, found in existing.items() if found}
