"""The Dockerfile holds its promises: no root, nothing from elsewhere, pinned versions; the runbook uses it right.

No builder is needed: the files are read.
"""

import re
import shlex
from dataclasses import dataclass
from importlib.metadata import metadata, requires
from pathlib import PurePosixPath

import pytest
from nvflare.tool.deploy import docker_deploy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedfms
from fedfms.cli import make_parser
from tests.conftest import REPO

RUNBOOK = (REPO / "provisioning" / "RUNBOOK.md").read_text()
EXTRAS = ("dicom", "export")  # those with pinned versions
USER = "1000:1000"
RESTRICTIONS = {"--tmpfs": "/tmp", "--cap-drop": "ALL", "--security-opt": "no-new-privileges", "--user": USER}
SECRET = re.compile(r"pass|secret|token|key|credential", re.I)


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.value)


def _instructions() -> list[Instruction]:
    text = re.sub(r"^#.*\n", "", (REPO / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def _named(name: str, within: list[Instruction] | None = None) -> list[Instruction]:
    return [one for one in within or ALL if one.name == name]


def _pins() -> dict[str, str]:
    lines = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def _docker_runs() -> list[list[str]]:
    """The words of each `docker run` of the runbook, its variables replaced."""
    options = " ".join(re.findall(r'^OPTIONS="(?:\$OPTIONS )?(.*?)"', RUNBOOK, re.M))
    lines = [line.replace("$OPTIONS", options) for line in re.findall(r"^docker run (.*)$", RUNBOOK, re.M)]
    return [shlex.split(line.replace("$(id -u):$(id -g)", USER)) for line in lines]


ALL = _instructions()
FINAL = ALL[max(place for place, one in enumerate(ALL) if one.name == "FROM") :]


def test_the_user_is_a_number_that_is_not_root_and_nothing_is_done_after_it() -> None:
    (user,) = _named("USER")
    assert user in FINAL and all(int(number) > 0 for number in user.value.split(":"))
    after = {one.name for one in FINAL[FINAL.index(user) + 1 :]}
    assert after <= {"WORKDIR", "CMD"}


def test_nothing_is_downloaded_but_packages_and_no_secret_is_named() -> None:
    assert not _named("ADD")
    for run in _named("RUN"):
        assert {re.match(r"python3 -m pip (\w+)", step.strip())[1] for step in run.value.split("&&")} <= {  # type: ignore[index]
            "wheel", "install", "check",
        }  # fmt: skip
        assert run.value.count("--no-cache-dir") == len(re.findall(r"pip (?:wheel|install)", run.value))
    names = [word.partition("=")[0] for one in [*_named("ENV"), *_named("ARG")] for word in one.words]
    assert names and not [name for name in names if SECRET.search(name)]


def test_every_stage_is_the_same_base_with_python_where_nvflare_starts_it() -> None:
    (base,) = [one.value.partition("=")[2] for one in _named("ARG") if one.value.startswith("BASE=")]
    assert base.startswith("docker.io/library/python:3.11-slim")  # Python is in /usr/local
    assert all(one.words[0] == "${BASE}" for one in _named("FROM"))
    assert "/usr/local/bin/python3" in docker_deploy.DOCKER_START_TEMPLATE.read_text()
    assert not _named("ENTRYPOINT")  # NVFLARE's start script gives the image a whole command


def test_the_wheel_is_installed_in_its_version_with_pinned_dependencies() -> None:
    build = ALL[: ALL.index(FINAL[0])]
    assert any("pip wheel" in one.value for one in _named("RUN", build))
    assert Instruction("ARG", f"VERSION={fedfms.__version__}") in FINAL
    (run,) = _named("RUN", FINAL)
    for step in run.value.split("&&")[:2]:
        assert "--constraint /opt/fedfms/constraints.txt" in step
    assert "file:///opt/fedfms/fedfms-${VERSION}-py3-none-any.whl" in run.value


@pytest.mark.parametrize("text", requires("fedfms") or [])
def test_a_dependency_is_pinned_within_its_range(text: str) -> None:
    need, pins = Requirement(text), _pins()
    if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in EXTRAS):
        assert need.specifier.contains(pins[canonicalize_name(need.name)])


def test_the_extras_of_the_image_exist_and_are_pinned() -> None:
    (extras,) = [one.value.partition("=")[2] for one in _named("ARG", FINAL) if one.value.startswith("EXTRAS=")]
    assert set(extras.split(",")) <= set(EXTRAS) <= set(metadata("fedfms").get_all("Provides-Extra") or [])


def test_the_build_sees_only_what_is_copied() -> None:
    copied = {word for one in _named("COPY") if "--from" not in one.value for word in one.words[:-1]}
    rules = [line for line in (REPO / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((REPO / name).exists() for name in copied)


def test_what_libraries_write_goes_to_the_writable_folder_of_the_runbook() -> None:
    variables = dict(word.split("=", 1) for one in _named("ENV", FINAL) for word in one.words)
    for name in ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        assert PurePosixPath(variables[name]).is_relative_to("/tmp")
    assert variables["USER"]  # the user has no name in the image


def test_the_runbook_runs_the_image_without_root_and_rights() -> None:
    assert len(_docker_runs()) >= 4
    for words in _docker_runs():
        image = next(place for place, word in enumerate(words) if word.startswith("REGISTRY/fedfms:"))
        options, command = words[:image], words[image + 1 :]
        assert fedfms.__version__.startswith(words[image].partition(":")[2])
        assert {"--read-only", "--init"} <= set(options) and "--privileged" not in options
        for name, value in RESTRICTIONS.items():
            assert options[options.index(name) + 1] == value
        mounts = [options[place + 1].split(":") for place, word in enumerate(options) if word == "-v"]
        assert all(host == inside for host, inside, *_ in mounts)  # a kit names its own folder and the data's
        named = [word for word in command if word.startswith("/")]
        assert named and all(any(PurePosixPath(word).is_relative_to(mount[0]) for mount in mounts) for word in named)
        if command[0] == "fedfms":
            make_parser().parse_args(command[1:])
        else:
            assert command[0].endswith("/startup/sub_start.sh") and command[1:] == ["--once"]


def test_the_runbook_builds_the_image_with_arguments_that_exist() -> None:
    builds = re.findall(r"^docker build (.*?)(?:  #.*)?$", RUNBOOK, re.M)
    assert builds
    arguments = {one.value.partition("=")[0] for one in _named("ARG")}
    for line in builds:
        assert set(re.findall(r"--build-arg (\w+)=", line)) <= arguments
        assert line.split()[-1] == "."
