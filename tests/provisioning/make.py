"""What tests of kits are made of: a project on this machine, and a federation of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from provisioning.kit import SUFFIX, open_kit

REPO = Path(__file__).parents[2]
PASSPHRASE = "a passphrase of tests"
SITES = ("site-1", "site-2", "site-3")
ADMIN, LEAD, MEMBER = "admin@lead.example", "lead@lead.example", "member@lead.example"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def project_file(path: Path, **own: Any) -> Path:
    """A project of a server, three sites and three people, on a port of its own."""
    port = free_port()
    server = {"name": "localhost", "type": "server", "org": "lead", "fed_learn_port": port, "admin_port": port}
    sites = [{"name": site, "type": "client", "org": f"org_{site[-1]}"} for site in SITES]
    roles = {ADMIN: "project_admin", LEAD: "lead", MEMBER: "member"}
    people = [{"name": name, "type": "admin", "org": "lead", "role": role} for name, role in roles.items()]
    content = {"api_version": 3, "name": "tried", "participants": [server, *sites, *people], "fedfms": own}
    path.write_text(yaml.safe_dump(content))
    return path


def opened(federation: Path, name: str, folder: Path) -> Path:
    """A participant's kit, opened into `folder`/`name` with the passphrase that was made for it."""
    secret = (federation / "passphrases" / f"{name}.txt").read_text().strip()
    open_kit(federation / "kits" / f"{name}{SUFFIX}", folder / name, secret)
    return folder / name


@contextmanager
def umask(value: int) -> Iterator[None]:
    """The umask, as a user of another habit has it."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)
