"""Plug-ins of a third-party package: registered, listed, built, run, compared by preflight, tested from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedfms.cli import main

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[1]

CODE = '''
from fedfms.methods.fedmsa import FedMSA
from fedfms.models import BACKBONES, Backbone


class FedFoo(FedMSA):
    """FedMSA under another name."""

    name = "fedfoo"
    paper = "Acme, 2026"


FOO_VIT = Backbone("sam", BACKBONES["vit_tiny"].build)
'''
DATASET = '''
"""Foo's images: raw/SITE/images and raw/SITE/labels."""

from fedfms.preprocessing import pairs
from fedfms.preprocessing.recipe import Recipe

NAME, HELP = "foo", "images of foo"


def add_options(parser):
    parser.add_argument("--eye", default="left", help="which one")


def recipe(arguments):
    return pairs.load_recipe("foo", "s", None)
'''
POINTS = {
    "fedfms.methods": {"fedfoo": "acme_fedfoo:FedFoo"},
    "fedfms.backbones": {"foo_vit": "acme_fedfoo:FOO_VIT"},
    "fedfms.datasets": {"foo": "acme_fedfoo.dataset"},
}
SMALL = ["data.phantom_images=8", "data.phantom_px=64", "model.input_px=64", "train.rounds=1", "federation.min_cases=1"]
SET = [part for each in SMALL for part in ("--set", each)]


def _install(folder: Path, name: str, version: str, points: dict[str, dict[str, str]]) -> None:
    """What an installer leaves of a package: its metadata."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = (f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in each.items()) for group, each in points.items())
    (info / "entry_points.txt").write_text("\n".join(groups))


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A folder with the package acme-fedfoo 1.2."""
    package = tmp_path / "installed" / "acme_fedfoo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CODE)
    (package / "dataset.py").write_text(DATASET)
    _install(tmp_path / "installed", "acme-fedfoo", "1.2", POINTS)
    return tmp_path / "installed"


def _python(packages: Path, folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    # FEDFMS_SITE would let settings of the machine in
    env = {key: value for key, value in os.environ.items() if key != "FEDFMS_SITE"}
    path = os.pathsep.join(map(str, (packages, REPO)))
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env={**env, "PYTHONPATH": path, "COLUMNS": "160"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def _fedfms(packages: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return _python(packages, packages.parent, "-m", "fedfms", *command)


def test_the_entries_of_a_package_are_listed_with_it(acme: Path) -> None:
    done = _fedfms(acme, "list")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("fedfoo (Acme, 2026), of package acme-fedfoo 1.2", "foo_vit (of package acme-fedfoo 1.2)"):
        assert line in done.stdout
    assert "foo (of package acme-fedfoo 1.2)" in done.stdout
    assert "--eye" in _fedfms(acme, "prepare", "foo", "--help").stdout


def test_a_method_and_a_backbone_are_built_and_run(acme: Path) -> None:
    done = _fedfms(acme, "job", "build", "fedfoo", "--study", "phantom", "--backbone", "foo_vit", "--out", "job", *SET)
    assert (done.returncode, done.stderr) == (0, "")
    job = acme.parent / "job"
    for name in ("config_fed_client.json", "config_fed_server.json"):
        assert '"acme-fedfoo": "1.2"' in (job / "app" / "config" / name).read_text()
    script = """
import fedfms
values = {"data.phantom_images": 8, "data.phantom_px": 64, "model.input_px": 64, "federation.min_cases": 1}
for method, backbone in (("fedfoo", "foo_vit"), ("fedmsa", "vit_tiny")):
    study = fedfms.load_study("phantom", method, rounds=1, overrides={**values, "model.backbone": backbone})
    print(fedfms.run(study, method).dice())
"""
    done = _python(acme, acme.parent, "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    own, builtin = done.stdout.splitlines()
    assert own == builtin


def test_the_conformance_tests_run_on_it_from_outside(acme: Path, tmp_path: Path) -> None:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "fedfms.testing", "-k", "fedfoo or foo_vit"]
    done = _python(acme, tmp_path, *command)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 20
    script = """
from pathlib import Path
from fedfms.testing import check_dataset
from tests.preprocessing.make import make_raw
check_dataset("foo", make_raw(Path("raw")), Path("out"))
print(sorted(path.name for path in Path("out/foo").iterdir()))
"""
    done = _python(acme, tmp_path, "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['s']\n", "")


_SITE = """
import json, sys
from pathlib import Path
from fedfms import plugins
from fedfms.errors import FedfmsError
from fedfms.flare.job import read_study, required_plugins
from fedfms.methods import make_method
job = Path("job")
try:
    plugins.admit(sys.argv[1:], required_plugins(job))
    print(make_method(read_study(job).method, {}).name)
except FedfmsError as error:
    print(error.line())
"""


def test_a_site_decides_which_packages_a_job_may_use(acme: Path, tmp_path: Path) -> None:
    assert _fedfms(acme, "job", "build", "fedfoo", "--study", "phantom", "--out", "job").returncode == 0
    job = str(tmp_path / "job")

    def at_site(packages: Path, *allowed: str) -> str:
        done = _python(packages, Path(job).parent, "-c", _SITE, *allowed)
        assert done.stderr == ""
        return done.stdout.strip()

    assert at_site(acme, "Acme_FedFoo") == "fedfoo"
    assert at_site(acme) == (
        "plug-ins: method fedfoo comes from package acme-fedfoo 1.2, which this site does not allow; "
        "if the site agrees, add `plugins: [acme-fedfoo]` to its fedfms_site.yaml"
    )
    empty, newer = tmp_path / "empty", tmp_path / "newer"
    empty.mkdir()
    assert at_site(empty, "acme-fedfoo") == (
        "plug-ins: the job was built with package acme-fedfoo 1.2; it is not installed here; "
        "install acme-fedfoo==1.2, or ask the lead to build the job with another version"
    )
    _install(newer, "acme-fedfoo", "1.3", POINTS)
    assert "acme-fedfoo 1.2; here it is 1.3; install acme-fedfoo==1.2" in at_site(newer, "acme-fedfoo")


BROKEN = {
    "raises": ("raise SystemError('/secret')", "fedraises", "raises", "it cannot be imported (SystemError)"),
    "lacks": ("", "fedlacks", "lacks:Missing", "it cannot be imported (AttributeError)"),
    "other": ("X = 3", "fedother", "other:X", "it is not a subclass of fedfms.methods.Method"),
    "renamed": (CODE, "fedbar", "renamed:FedFoo", "its attribute `name` is not 'fedbar', or it has no `paper`"),
    "spaced": (CODE, "fed bad", "spaced:FedFoo", "its name is not valid"),
    "clash": (CODE, "fedmsa", "clash:FedFoo", "which is a built-in name; it is ignored"),
}  # fmt: skip


def test_a_broken_plug_in_is_one_line_and_stops_nothing_else(tmp_path: Path) -> None:
    packages = tmp_path / "installed"
    packages.mkdir()
    for name, (code, method, value, _) in BROKEN.items():
        (packages / f"{name}.py").write_text(code)
        _install(packages, name, "1", {"fedfms.methods": {method: value}})
    done = _fedfms(packages, "list")
    assert (done.returncode, done.stderr) == (0, "")
    for name, (*_, message) in BROKEN.items():
        (line,) = [line for line in done.stdout.splitlines() if f"package {name} 1" in line]
        assert message in line
    assert "fedsca (FedSCA, ICML 2025)" in done.stdout
    assert "secret" not in done.stdout
    done = _fedfms(packages, "job", "build", "fedraises", "--study", "phantom", "--out", "bad-job")
    assert done.returncode == 1
    assert [BROKEN["raises"][-1] in line for line in done.stderr.splitlines()] == [True]


def test_one_name_in_two_packages_is_an_error_that_names_both(acme: Path) -> None:
    _install(acme, "other", "3", {"fedfms.methods": {"fedfoo": "acme_fedfoo:FedFoo"}})
    done = _fedfms(acme, "job", "build", "fedfoo", "--study", "phantom", "--out", "job")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("fedfms: plug-ins: method fedfoo comes from ")
    assert {"acme-fedfoo 1.2", "other 3"} <= set(line.split(" comes from ")[1].split(";")[0].split(" and "))


def test_a_built_in_job_names_no_package(tmp_path: Path) -> None:
    assert main(["job", "build", "fedmsa", "--study", "phantom", "--out", str(tmp_path / "job")]) == 0
    assert "plugins" not in (tmp_path / "job" / "app" / "config" / "config_fed_client.json").read_text()
