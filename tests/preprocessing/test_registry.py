"""Conformance of every registered data set: recipe, help page, options, errors."""

import re

import pytest

from fedfms.cli import make_parser
from fedfms.names import is_name
from fedfms.preprocessing.registry import DATASETS
from tests.preprocessing.make import as_sent, main

ALL = pytest.mark.parametrize("name", DATASETS)
ADDRESS = re.compile(r"\b[\w-]+\.(ch|com|de|edu|es|eu|gov|in|info|io|net|no|org|uk)\b")


def _recipe(name):
    arguments = make_parser().parse_args(["prepare", name, "--raw", "RAW", "--out", "OUT"])
    return DATASETS[name].recipe(arguments)


@ALL
def test_structures_of_the_default_recipe(name):
    recipe = _recipe(name)
    assert is_name(recipe.dataset)
    values = [structure.value for structure in recipe.structures]
    assert values
    assert len(set(values)) == len(values)
    assert all(type(value) is int and 0 < value <= 255 for value in values)
    names = [structure.name for structure in recipe.structures]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9 _-]*", structure) for structure in names)


@ALL
def test_the_help_has_licence_citations_source_and_layout(name, capsys):
    about = DATASETS[name].about
    assert re.search(r"\blicen[cs]es?\b", about, re.IGNORECASE)
    assert re.search(r"\bcitations?\b.*\b(19|20)\d\d\b", about, re.IGNORECASE | re.DOTALL)
    assert ADDRESS.search(about), "no address at which to request the raw data"
    assert "RAW" in about, "no expected layout"
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert about.strip() in shown
    assert "--all-sites" in shown


@ALL
def test_the_list_of_commands_has_a_line_of_each(name, capsys):
    one = DATASETS[name].help
    assert one.strip() == one
    assert "\n" not in one
    assert 10 < len(one) < 120
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "".join(one.split()) in "".join(capsys.readouterr().out.split())  # argparse breaks lines at hyphens too


@ALL
def test_find_and_read_can_be_pickled(name):
    recipe = _recipe(name)
    for part in (recipe.find, recipe.read):
        assert as_sent(part) == part


@ALL
def test_options_are_texts_for_the_manifest(name):
    options = _recipe(name).options
    assert all(isinstance(text, str) and text for pair in options.items() for text in pair)


@ALL
@pytest.mark.parametrize("how", ["empty", "other files"])
def test_an_unsuitable_raw_folder_is_one_line(name, how, tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    if how == "other files":
        (raw / "notes.txt").write_text("x")
        (raw / "Mustermann").mkdir()
    assert main([name, "--raw", str(raw), "--out", str(tmp_path / "out")]) == 1
    shown = "".join(capsys.readouterr())
    assert len(shown.strip().splitlines()) == 1
    assert "Mustermann" not in shown
    assert not (tmp_path / "out").exists()
    assert not (raw / ".fedfms-keys").exists()


@ALL
def test_site_and_all_sites_exclude_each_other(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--raw", ".", "--out", "o", "--site", "a", "--all-sites"])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_missing_site_is_one_line(tmp_path, capsys):
    for part in ("images", "labels"):
        (tmp_path / "a" / part).mkdir(parents=True)
    assert main(["polyp", "--raw", str(tmp_path), "--out", str(tmp_path / "out"), "--site", "b"]) == 1
    shown = "".join(capsys.readouterr())
    assert len(shown.splitlines()) == 1
    assert "no site 'b' in --raw" in shown
