"""The project file: NVFLARE's project.yml plus a section `fedfms`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedfms.errors import ProvisioningError
from fedfms.flare.nvflare_cli import LENIENT, MAX_JOB_MB
from fedfms.schema import STRICT, mapping, parse, read_yaml

TEMPLATE = Path(__file__).with_name("project.yml")
WHERE, DO = "project file", "`fedfms kits template` prints a valid one"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_LIBRARY = "nvflare.lighter.impl"
_TEMPLATES = ["master_template.yml", "aws_template.yml", "azure_template.yml"]  # of NVFLARE's start scripts
Role = Literal["project_admin", "org_admin", "lead", "member"]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=LENIENT)
class Participant:
    """A server, site (client) or person (admin); NVFLARE accepts more keys."""

    name: str
    type: Literal["server", "client", "admin"]
    org: str
    role: Role | None = None
    fed_learn_port: Port | None = None
    admin_port: Port | None = None
    default_host: str | None = None

    def __post_init__(self) -> None:
        where = self.name[:64]
        if not _NAME.fullmatch(self.name):
            what = "a name must consist of letters, digits, dots, hyphens, and @ for a person"
            raise ProvisioningError(what, where=where)
        if self.type == "admin" and self.role is None:
            raise ProvisioningError("an admin needs a role", where=where, do=DO)
        if self.type == "server" and self.fed_learn_port is None:
            raise ProvisioningError("the server needs a fed_learn_port", where=where, do="8102, for example")


@dataclass(frozen=True, config=STRICT)
class Options:
    """The section `fedfms` of a project file."""

    jobs: tuple[str, ...] = ()
    """Job folders, relative to the project file."""
    max_job_mb: Count = MAX_JOB_MB
    root_days: Count = 3650


@dataclass(frozen=True, config=LENIENT)
class ProjectFile:
    """The keys of a project file that are used here."""

    name: str
    participants: tuple[Participant, ...]
    description: str | None = None
    fedfms: Options | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ProvisioningError("the project's name must consist of letters, digits, dots and hyphens", do=DO)
        names = [one.name for one in self.participants]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ProvisioningError(f"duplicate names: {twice}", do="give each participant its own")
        if sum(one.type == "server" for one in self.participants) != 1:
            raise ProvisioningError("there must be one server", do=DO)


class Project:
    """A federation's participants, and what sites may send.

    Args:
        raw: the content of a project file; keys of NVFLARE are passed on to it.
        folder: where relative paths of jobs start.

    Raises:
        ProvisioningError: a key is missing, unknown, or has a wrong value.
    """

    def __init__(self, raw: dict[str, Any], folder: Path) -> None:
        file = parse(ProjectFile, raw, ProvisioningError, where=WHERE, do=DO)
        options = file.fedfms or Options()
        self.name, self.participants = file.name, file.participants
        self.jobs = tuple((folder / job).resolve() for job in options.jobs)
        self.max_job_mb = options.max_job_mb
        self._nvflare = raw | {"api_version": 3, "description": file.description or ""}
        self._root_days = options.root_days

    def find(self, name: str) -> Participant | None:
        """The participant of that name."""
        return next((one for one in self.participants if one.name == name), None)

    @property
    def server(self) -> Participant:
        """The server."""
        return next(one for one in self.participants if one.type == "server")

    def with_participant(self, participant: dict[str, Any]) -> Project:
        """The project with one more participant."""
        raw = self.to_dict()
        return Project(raw | {"participants": [*raw["participants"], participant]}, Path())

    def to_dict(self) -> dict[str, Any]:
        """The content of a project file, with absolute paths."""
        jobs = [str(job) for job in self.jobs]
        options = {"jobs": jobs, "max_job_mb": self.max_job_mb, "root_days": self._root_days}
        return self._nvflare | {"fedfms": options}

    def for_nvflare(self, only: str | None = None) -> dict[str, Any]:
        """NVFLARE's project file: of all participants, or of one and the server, which NVFLARE requires."""
        chosen = [
            one for one in self._nvflare["participants"]
            if only is None or one["name"] == only or one["type"] == "server"
        ]  # fmt: skip
        builders = [
            {"path": f"{_LIBRARY}.workspace.WorkspaceBuilder", "args": {"template_file": _TEMPLATES}},
            {"path": f"{_LIBRARY}.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
            {"path": f"{_LIBRARY}.cert.CertBuilder", "args": {"root_valid_days": self._root_days}},
            {"path": f"{_LIBRARY}.signature.SignatureBuilder"},
        ]
        plain = {key: value for key, value in self._nvflare.items() if key != "fedfms"}
        return {"builders": builders, **plain, "participants": chosen}


def load_project(path: Path) -> Project:
    """The project in a file.

    Raises:
        ProvisioningError: it cannot be read, or a key is missing, unknown, duplicated or has a wrong value.
    """
    raw = mapping(read_yaml(path, ProvisioningError, where=WHERE, do=DO), ProvisioningError, what=WHERE, do=DO)
    return Project(raw, path.parent)


def check_participant(participant: dict[str, Any], where: str) -> Participant:
    """A participant that NVFLARE and the files of a kit accept."""
    return parse(Participant, participant, ProvisioningError, where=where)
