"""The Makefile's demo, and what it installs."""

from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def test_the_demo_prints_its_table_once() -> None:
    """A run's log ends with the table (`flare/recorder.py`), so the demo must not call `fedfms report`."""
    (recipe,) = [part for part in MAKEFILE.read_text().split("\n\n") if part.startswith("demo:")]
    assert [line.split()[2] for line in recipe.splitlines() if line.startswith("\t")] == ["simulator"]


def test_requirements_are_those_of_the_package_and_its_tests() -> None:
    needed = map(Requirement, requires("fedfms") or ())
    wanted = {(n.name, n.specifier) for n in needed if n.marker is None or n.marker.evaluate({"extra": "test"})}
    lines = (MAKEFILE.parent / "requirements.txt").read_text().splitlines()
    *named, last = [line for line in lines if not line.startswith("#")]
    assert {(one.name, one.specifier) for one in map(Requirement, named)} == wanted
    assert last == "-e ."
