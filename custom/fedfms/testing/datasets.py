"""A check of a registered data set on a raw folder in its layout."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedfms.data.manifest import load_manifest
from fedfms.preprocessing.check import check_site
from fedfms.preprocessing.convert import convert_site, list_sites
from fedfms.preprocessing.registry import DATASETS


def check_dataset(name: str, raw: Path, out: Path, options: Sequence[str] = ()) -> None:
    """Assert that a data set converts every site of `raw` to the data contract, twice with the same files.

    Args:
        raw: a raw folder without faults; the key file is written into it.
        out: an empty folder for the converted data.
        options: the data set's own, as on the command line.
    """
    parser = argparse.ArgumentParser()
    DATASETS[name].add_options(parser)
    recipe = DATASETS[name].recipe(parser.parse_args(list(options)))
    sites = list_sites(raw, recipe)
    assert sites, "no site was found"
    for site in sites:
        summary = convert_site(raw, out, site, recipe, workers=0)
        folder = out / recipe.dataset / site
        assert summary.faults == (), summary.faults
        assert summary.cases > 0
        assert check_site(folder) == []
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        manifest = load_manifest(folder)
        assert {structure.value for structure in manifest.structures} == {one.value for one in recipe.structures}
        raw_names = {path.stem for path in raw.rglob("*") if path.is_file()}
        assert not raw_names & {path.stem for path in before}, "a file name of the raw data is in the converted data"
        convert_site(raw, out, site, recipe, workers=0)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
