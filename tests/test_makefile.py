"""The Makefile's demo."""

from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def test_the_demo_prints_its_table_once() -> None:
    """A run's log ends with the table (`flare/recorder.py`), so the demo must not call `fedfms report`."""
    (recipe,) = [part for part in MAKEFILE.read_text().split("\n\n") if part.startswith("demo:")]
    assert [line.split()[2] for line in recipe.splitlines() if line.startswith("\t")] == ["simulator"]
