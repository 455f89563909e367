"""The project file: NVFLARE's own, with a section of ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedfms.errors import ProvisioningError
from fedfms.flare.nvflare_cli import MAX_JOB_MB

TEMPLATE = Path(__file__).with_name("project.yml")
_ROLES = ("project_admin", "org_admin", "lead", "member")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_OWN: dict[str, Any] = {"jobs": [], "max_job_mb": MAX_JOB_MB, "root_days": 3650}
_LIBRARY = "nvflare.lighter.impl"


@dataclass(frozen=True)
class Project:
    """A federation's participants, as NVFLARE takes them, and what sites may send.

    Attributes:
        jobs: absolute paths of job folders.
    """

    name: str
    description: str
    participants: tuple[dict[str, Any], ...]
    jobs: tuple[Path, ...] = ()
    max_job_mb: int = MAX_JOB_MB
    root_days: int = 3650
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def server(self) -> dict[str, Any]:
        """The one that all others connect to."""
        (server,) = (one for one in self.participants if one["type"] == "server")
        return server

    def to_dict(self) -> dict[str, Any]:
        """As `load_project` reads it."""
        own = {"jobs": [str(job) for job in self.jobs], "max_job_mb": self.max_job_mb, "root_days": self.root_days}
        return {
            "api_version": 3, "name": self.name, "description": self.description,
            "participants": list(self.participants), **self.extra, "fedfms": own,
        }  # fmt: skip

    def for_nvflare(self, only: str | None = None) -> dict[str, Any]:
        """NVFLARE's project file: of all, or of the server (which it cannot be without) and one more."""
        chosen = [one for one in self.participants if only is None or one["name"] == only or one["type"] == "server"]
        builders = [
            {
                "path": f"{_LIBRARY}.workspace.WorkspaceBuilder",
                "args": {"template_file": ["master_template.yml", "aws_template.yml", "azure_template.yml"]},
            },
            {"path": f"{_LIBRARY}.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
            {"path": f"{_LIBRARY}.cert.CertBuilder", "args": {"root_valid_days": self.root_days}},
            {"path": f"{_LIBRARY}.signature.SignatureBuilder"},
        ]
        given = {key: value for key, value in self.to_dict().items() if key != "fedfms"}
        return {"builders": builders, **given, "participants": chosen}


def load_project(path: Path) -> Project:
    """The project of a file.

    Raises:
        ProvisioningError: it cannot be read, or something in it is missing, unknown or said twice.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProvisioningError(f"the project file cannot be read ({error.strerror})", do="name another") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ProvisioningError("the project file is not YAML", do=_see()) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("participants"), list) or not raw.get("name"):
        raise ProvisioningError("the project file has no name or no participants", do=_see())
    own = _own(raw.pop("fedfms", None))
    known = {"api_version", "name", "description", "participants"}
    project = Project(
        name=str(raw["name"]), description=str(raw.get("description") or ""),
        participants=tuple(raw["participants"]),
        jobs=tuple((path.parent / job).resolve() for job in own["jobs"]),
        max_job_mb=own["max_job_mb"], root_days=own["root_days"],
        extra={key: value for key, value in raw.items() if key not in known},
    )  # fmt: skip
    _check(project)
    return project


def _own(section: Any) -> dict[str, Any]:
    """What the section says, and defaults."""
    section = {} if section is None else section
    if not isinstance(section, dict):
        raise ProvisioningError("the project's section fedfms must hold keys", do=f"known: {list(_OWN)}")
    unknown = sorted(str(key) for key in set(section) - set(_OWN))
    if unknown:
        raise ProvisioningError(f"the project's section fedfms has unknown keys {unknown}", do=f"known: {list(_OWN)}")
    own = _OWN | section
    for key in ("max_job_mb", "root_days"):
        if type(own[key]) is not int or own[key] < 1:
            raise ProvisioningError(f"the project's {key} must be a number, 1 or more")
    if not isinstance(own["jobs"], list) or not all(isinstance(job, str) for job in own["jobs"]):
        raise ProvisioningError("the project's jobs must be a list of folders", do="`jobs: []` if there is none yet")
    return own


def _see() -> str:
    return "`python -m provisioning template` prints one to copy"


def _check(project: Project) -> None:
    if not _NAME.fullmatch(project.name):
        raise ProvisioningError("the project's name must be letters, digits, dots and hyphens", where="project file")
    for one in project.participants:
        check_participant(one)
    names = [one["name"] for one in project.participants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProvisioningError(f"names are said twice: {twice}", where="project file", do="give each its own")
    if sum(one["type"] == "server" for one in project.participants) != 1:
        raise ProvisioningError("there must be one server", where="project file")


def check_participant(one: Any) -> None:
    """A participant must be what NVFLARE and the files of a kit can take.

    Raises:
        ProvisioningError: a key is missing, a name cannot be that of a folder, a role or port is none.
    """
    if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("name", "type", "org")):
        raise ProvisioningError("a participant needs name, type and org", where="project file", do=_see())
    where = f"project file, {one['name'][:64]}"
    if not _NAME.fullmatch(one["name"]):
        raise ProvisioningError("a name must be letters, digits, dots, hyphens, and @ for a person", where=where)
    if one["type"] not in ("server", "client", "admin"):
        raise ProvisioningError(f"type {one['type']!r} is unknown", where=where, do="server, client or admin")
    if one["type"] == "admin" and one.get("role") not in _ROLES:
        raise ProvisioningError(f"role {one.get('role')!r} is unknown", where=where, do=f"one of {list(_ROLES)}")
    port = one.get("fed_learn_port")
    if one["type"] == "server" and (type(port) is not int or not 1 <= port <= 65535):
        raise ProvisioningError("fed_learn_port must be a port", where=where, do="8102, for instance")
