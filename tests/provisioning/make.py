"""Test objects: a project file for this machine, and opened kits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fedfms.provisioning.kit import SUFFIX, open_kit

REPO = Path(__file__).parents[2]
PASSPHRASE = "a passphrase of tests"
SITES = ("site-1", "site-2", "site-3")
ADMIN, LEAD, MEMBER = "admin@lead.example", "lead@lead.example", "member@lead.example"


def project_file(path: Path, **options: Any) -> Path:
    """A project file of a server, three sites and three people; `options` is its section `fedfms`."""
    port = 18102
    server = {"name": "localhost", "type": "server", "org": "lead", "fed_learn_port": port, "admin_port": port}
    sites = [{"name": site, "type": "client", "org": f"org_{site[-1]}"} for site in SITES]
    roles = {ADMIN: "project_admin", LEAD: "lead", MEMBER: "member"}
    people = [{"name": name, "type": "admin", "org": "lead", "role": role} for name, role in roles.items()]
    content = {"api_version": 3, "name": "tried", "participants": [server, *sites, *people], "fedfms": options}
    path.write_text(yaml.safe_dump(content))
    return path


def opened(federation: Path, name: str, folder: Path) -> Path:
    """A participant's kit, opened into `folder`/`name` with its generated passphrase."""
    secret = (federation / "passphrases" / f"{name}.txt").read_text().strip()
    open_kit(federation / "kits" / f"{name}{SUFFIX}", folder / name, secret)
    return folder / name


@contextmanager
def umask(value: int) -> Iterator[None]:
    """Run with another umask."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)
