"""`fedfms sites`: with all data on one machine, and merged from the sites' files, with the same numbers."""

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from fedfms.cli import main
from tests.data.make import make_site

STUDY = """\
name: eyes
sites: [a, b]
data:
  dataset: eyes
  structures: [{name: disc, values: [1, 2]}, {name: cup, values: [2]}]
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    """A study of two sites with data."""
    for site in ("a", "b"):
        make_site(tmp_path / "root", site, n=12, salt="planted-marker-")
    (tmp_path / "eyes.yaml").write_text(STUDY)
    return str(tmp_path / "eyes.yaml")


def _here(study: str, tmp_path: Path, *more: str) -> int:
    return main(["sites", study, "--root", str(tmp_path / "root"), *more])


def test_lines_are_not_wrapped_outside_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"polypgen_c{n}_a_hospital_of_a_long_name_in_a_far_country" for n in range(6)]
    command = ["sites", "phantom", "--set", "data.phantom_images=12", "--set", "data.phantom_px=64", "--min-cases", "2"]
    assert main([*command, "--sites", ",".join(names)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in names:
        assert len([line for line in lines if name in line]) > 1, "in each table"


@pytest.mark.slow
def test_merged_files_give_the_same_numbers(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _here(study, tmp_path, "--out", str(tmp_path / "report"), "--json", str(tmp_path / "one.json")) == 0
    together = json.loads((tmp_path / "one.json").read_text())
    files = []
    for site in ("a", "b"):
        files.append(str(tmp_path / f"{site}.json"))
        capsys.readouterr()
        assert _here(study, tmp_path, "--site", site, "--out-file", files[-1]) == 0
        output, handed = capsys.readouterr().out, Path(files[-1]).read_text()
        assert output.startswith(handed)  # the output shows exactly what leaves the site
        assert "planted-marker" not in handed
        assert str(tmp_path) not in handed
        assert len(handed) < 10_000
    assert main(["sites", "--merge", *reversed(files), "--json", str(tmp_path / "two.json")]) == 0
    assert json.loads((tmp_path / "two.json").read_text()) == together
    written = {path.name: path for path in (tmp_path / "report").iterdir()}
    assert set(written) == {"sites.json", "sites.md", "sites.png", "sites.svg"}
    assert json.loads(written["sites.json"].read_text()) == together
    assert "| a | 12 | 12 | 1.0 (0.0) | 12.0 (0.0) | 20.0 (0.0) | disc | 16.7 (0.0) | 0.0 |" in written[
        "sites.md"].read_text()  # fmt: skip
    assert Image.open(io.BytesIO(written["sites.png"].read_bytes())).size[0] > 500
    assert ElementTree.parse(written["sites.svg"]).getroot().tag.endswith("svg")
    for path in written.values():
        assert b"planted-marker" not in path.read_bytes()


def test_a_site_with_too_few_patients_is_a_note(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_site(tmp_path / "root", "few", n=4)
    few = ("--set", "held_out=[few]")
    assert _here(study, tmp_path, *few, "--sites", "a,few", "--json", str(tmp_path / "out.json")) == 0
    assert "Note: site few: it has fewer than 5 patients, too few to report." in " ".join(
        capsys.readouterr().out.split()
    )
    written = json.loads((tmp_path / "out.json").read_text())
    assert [site["site"] for site in written["sites"]] == ["a"]
    assert _here(study, tmp_path, "--min-cases", "13") == 1  # both sites have fewer
    assert _here(study, tmp_path, *few, "--sites", "few", "--min-cases", "4") == 0


def test_the_phantom_needs_no_data(tmp_path: Path) -> None:
    command = ["sites", "phantom", "--set", "data.phantom_images=12", "--set", "data.phantom_px=32"]
    assert main([*command, "--json", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["distances"]["sites"] == ["site-1", "site-2", "site-3", "site-4"]
    assert {site["patients"] for site in written["sites"]} == {6}
    matrix = written["distances"]["intensity"]
    assert all(matrix[i][i] == 0 and matrix[i][j] == matrix[j][i] > 0 for i in range(4) for j in range(i))


@pytest.mark.slow
def test_errors_are_one_line(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, odd = tmp_path / "few.json", tmp_path / "odd.json"
    odd.write_text("[1]")
    assert _here(study, tmp_path, "--site", "a", "--out-file", str(few), "--min-cases", "2") == 0
    for command, message in [
        (["sites"], "exactly one of three forms"),
        (["sites", study, "--merge", str(odd)], "exactly one of three forms"),
        (["sites", study, "--site", "a"], "exactly one of three forms"),
        (["sites", "--merge", str(odd)], "odd.json: profile: expected mapping"),
        (
            ["sites", "--merge", str(few)],
            "few.json: it contains statistics over 2 patients; make it with --min-cases 5",
        ),
        (["sites", "--merge", str(tmp_path / "gone.json")], "cannot read gone.json (No such file or directory)"),
        (["sites", "fundus", "--root", str(tmp_path / "root")], "there is no folder fundus/REFUGE"),
        (["sites", study, "--root", str(tmp_path / "root"), "--out", str(odd)], "cannot write sites.json"),
        (["sites", study, "--root", str(tmp_path / "gone")], "--root is not a folder"),
        (["splits", study, "--root", str(tmp_path / "gone")], "--root is not a folder"),
        (["sites", study, "--sites", "a,typo"], "--sites names ['typo'], which the study does not; one of ['a', 'b']"),
        (["sites", study, "--site", "typo", "--out-file", str(odd)], "--site names ['typo']"),
        (["splits", study, "--sites", "a,typo"], "--sites names ['typo']"),
        (["fingerprint", study, "--site", "typo", "--out", str(odd)], "--site names ['typo']"),
        (["job", "build", "fedmsa", "--study", study, "--sites", "typo", "--out", str(odd)], "--sites names ['typo']"),
        (["table", study, "--sites", "a,typo", "--out", str(odd)], "--sites names ['typo']"),
    ]:
        capsys.readouterr()
        assert main(command) == 1, command
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error
        assert str(tmp_path) not in error
    with pytest.raises(SystemExit):
        main(["sites", study, "--min-cases", "1"])


@pytest.mark.parametrize(
    ("fault", "message"), [(OSError(36, "File name too long", "/data/StMary"), "File name too long"),
                        (OSError("no picture: /data/StMary"), "OSError")],
)  # fmt: skip
def test_an_error_of_the_system_is_one_line_without_a_path(
    fault: OSError, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("fedfms.cli.sites._open", fail)
    assert main(["sites", "phantom"]) == 1
    error = capsys.readouterr().err
    assert error == f"fedfms: a file cannot be read or written: {message}; check names, permissions and disk space\n"
