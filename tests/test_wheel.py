"""The wheel and the sdist: what they hold, and the installed wheel at work without a checkout or a compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import fedfms
from fedfms.experiments.plan import TABLES
from fedfms.flare.preflight.host import package_fingerprint
from fedfms.methods import METHODS
from fedfms.study import yaml_names
from tests.conftest import REPO

pytestmark = pytest.mark.slow

INPUTS = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
FOLDERS = ("custom", "preprocessing", "provisioning")
TINY = (
    "data.phantom_images=7", "data.phantom_px=64", "model.input_px=64", "train.local_epochs=1", "sites=[a, b]",
    "held_out=[]", "federation.min_cases=1",
)  # fmt: skip
SIMULATOR = ("python", "-m", "nvflare.private.fed.app.simulator.simulator")
Contents = dict[str, bytes]


def _build(source: Path, out: Path, *options: str) -> Path:
    """Build with the backend of this environment: no network is needed. Returns the wheel."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *options, str(source)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, links as links, with the files that a checkout gathers in use."""
    folder = tmp_path_factory.mktemp("source")
    for name in INPUTS:
        shutil.copy(REPO / name, folder)
    for name in FOLDERS:
        shutil.copytree(REPO / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    for left in ("tests/test_a.py", "custom/fedfms/__pycache__/a.cpython-311.pyc", "preprocessing/__pycache__/a.pyc"):
        (folder / left).parent.mkdir(exist_ok=True)
        (folder / left).touch()
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is made from the sdist, which lies next to it."""
    return _build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def in_wheel(wheel: Path) -> Contents:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def in_sdist(wheel: Path) -> Contents:
    (path,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        assert all(member.isfile() or member.isdir() for member in archive)  # a link would lead nowhere
        files = [member for member in archive if member.isfile()]
        return {m.name.partition("/")[2]: archive.extractfile(m).read() for m in files}  # type: ignore[union-attr]


def _package(source: Path) -> Contents:
    """The files of the package in the tree, by name in the wheel."""
    top = source / "custom"
    found = [Path(folder) / name for folder, _, names in os.walk(top / "fedfms", followlinks=True) for name in names]
    return {str(path.relative_to(top)): path.read_bytes() for path in found if path.parent.name != "__pycache__"}


def test_the_wheel_is_pure_python_and_holds_the_whole_package_and_nothing_else(
    source: Path, wheel: Path, in_wheel: Contents
) -> None:
    assert wheel.name == f"fedfms-{fedfms.__version__}-py3-none-any.whl"
    package = _package(source)
    parts = ("preprocessing/polyp.py", "provisioning/RUNBOOK.md", "provisioning/project.yml", "studies/polyp.yaml")
    assert {f"fedfms/{part}" for part in parts} <= set(package)
    assert {name: content for name, content in in_wheel.items() if ".dist-info/" not in name} == package
    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert in_wheel[f"{info}/licenses/LICENSE"] == (REPO / "LICENSE").read_bytes()
    assert b"Root-Is-Purelib: true" in in_wheel[f"{info}/WHEEL"]
    metadata = in_wheel[f"{info}/METADATA"].decode()
    assert metadata.endswith((REPO / "README.md").read_text())
    for line in ("Author: The fedfms authors", "License-Expression: Apache-2.0", "Requires-Python: >=3.10"):
        assert f"\n{line}\n" in metadata


def test_the_sdist_holds_the_package_as_files_and_nothing_unwanted(source: Path, in_sdist: Contents) -> None:
    package = {f"custom/{name}": content for name, content in _package(source).items()}
    made = {name for name in in_sdist if name.startswith("custom/fedfms.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert {name: in_sdist[name] for name in package} == package
    assert set(in_sdist) - made == {*package, *INPUTS}


def test_the_wheel_from_the_sdist_equals_the_wheel_from_the_tree(
    source: Path, in_wheel: Contents, tmp_path: Path
) -> None:
    with zipfile.ZipFile(_build(source, tmp_path, "--wheel")) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == in_wheel


class Installed:
    """A new environment with the wheel, and an empty folder in which its commands run.

    The environment finds the dependencies where these tests do, after its own packages, and reads no `.pth` file there,
    so it cannot import an editable install of the checkout. PATH has the environment's programs only: no compiler.
    """

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.folder, self.bin = folder / "empty", folder / "env" / "bin"
        self.folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.bin.parent)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)], check=True)
        (packages,) = self.bin.parent.glob("lib/python*/site-packages")
        (packages / "dependencies.pth").write_text("\n".join(map(sysconfig.get_path, ("purelib", "platlib"))))
        dropped = ("CC", "CXX", "PYTHONPATH", "FEDFMS_SITE", "VIRTUAL_ENV")
        self.env = {key: value for key, value in os.environ.items() if key not in dropped}
        self.env |= {"PATH": str(self.bin), "FEDFMS_PASSPHRASE": "a passphrase of tests", "COLUMNS": "200"}

    def run(self, *command: str) -> str:
        """What a command of the environment prints; it must succeed."""
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own."""
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def images(installed: Installed) -> Path:
    """Six images with masks, in the layout of `prepare pairs`."""
    raw, draw = installed.folder / "RAW", np.random.default_rng(0)
    for kind in ("images", "labels"):
        (raw / kind).mkdir(parents=True)
    for number in range(6):
        mask = np.zeros((64, 64), np.uint8)
        mask[16 + number : 48, 20:44] = 255
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(raw / "images" / f"{number}.png")
        Image.fromarray(mask).save(raw / "labels" / f"{number}.png")
    return raw


@pytest.fixture(scope="module")
def job(installed: Installed) -> Path:
    """A job of two rounds on a tiny phantom."""
    options = [word for setting in TINY for word in ("--set", setting)]
    printed = installed.run(
        "fedfms", "job", "build", "fedmsa", "--study", "phantom", "--rounds", "2", *options, "--out", "job"
    )
    assert "fedmsa on phantom" in printed
    return installed.folder / "job"


def test_the_command_and_the_module_are_the_wheels(installed: Installed, source: Path) -> None:
    version = f"fedfms {fedfms.__version__}\n"
    assert installed.run("fedfms", "--version") == installed.run("python", "-m", "fedfms", "--version") == version
    where = Path(installed.run("python", "-c", "import fedfms; print(fedfms.__file__)"))
    assert where.is_relative_to(installed.bin.parent)
    assert package_fingerprint(where.parent) == package_fingerprint(source / "custom" / "fedfms")
    assert shutil.which("cc", path=installed.env["PATH"]) is None


def test_every_method_study_and_table_is_listed(installed: Installed) -> None:
    printed = installed.run("fedfms", "list").split()
    assert not {*METHODS, *yaml_names(TABLES)} - set(printed)
    assert not set(yaml_names()) - {word.rstrip(",") for word in printed}


def test_image_pairs_are_converted_and_checked(installed: Installed, images: Path) -> None:
    assert (images / "images" / "0.png").is_file()
    pairs = "prepare pairs --raw RAW --out DATA --dataset fundus --site mine --workers 0"
    printed = installed.run("fedfms", *pairs.split())
    assert ["mine", "6", "6"] in [line.split()[:3] for line in printed.splitlines()]  # site, cases, slices
    assert installed.run("fedfms", "prepare", "check", "DATA") == "fundus/mine: no faults\n"


def test_kits_are_made_from_the_template(installed: Installed, job: Path) -> None:
    project = yaml.safe_load(installed.run("fedfms", "kits", "template"))
    project["fedfms"]["jobs"] = [job.name]
    (installed.folder / "project.yml").write_text(yaml.safe_dump(project))
    printed = installed.run("fedfms", "kits", "make", "--project", "project.yml", "--out", "FED")
    names = {participant["name"] for participant in project["participants"]}
    assert {path.stem for path in (installed.folder / "FED" / "kits").iterdir()} == names
    assert {line.split()[-1] for line in printed.splitlines()} >= names


@pytest.mark.federation
def test_a_job_runs_in_the_simulator_and_its_model_predicts(installed: Installed, job: Path, images: Path) -> None:
    printed = installed.run(*SIMULATOR, job.name, "-w", "workspace", "-t", "2")
    assert "NOT VALID" not in printed
    model = "workspace/server/simulate_job/app_server/FL_global_model.pt"
    printed = installed.run("fedfms", "predict", "--model", model, "--input", f"{images.name}/images", "--out", "MASKS")
    assert "6 of 6 inputs" in printed
    masks = sorted((installed.folder / "MASKS").glob("*_mask.png"))
    assert [path.name for path in masks] == [f"{number}_mask.png" for number in range(6)]
    assert all(Image.open(path).size == (64, 64) for path in masks)
