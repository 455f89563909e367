"""A real federation on this machine: a server and its sites as processes of their own, mTLS on loopback, own stores.

    python -m provisioning federation --job JOB [--job JOB ...] --out DIR

Everything is polled: no step waits for longer than it takes. What was started bears a mark in its environment, by
which it is ended; no other process is.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.job import APP
from fedfms.flare.nvflare_cli import ask
from fedfms.flare.nvflare_cli import environment as own_environment
from fedfms.flare.preflight import Context, Row, failed, preflight
from fedfms.flare.submit import registered, send, watch_job
from provisioning.deployment import make
from provisioning.kit import SUFFIX, open_kit
from provisioning.secret import make_passphrase

Show = Callable[[str, str, list[Row]], object]  # (site, job, rows of its preflight)
POLL_S = 0.5
ADMIN, LEAD = "admin@lead.example", "lead@lead.example"
_SERVER = "localhost"
_MARK = "FEDFMS_FEDERATION"  # in the environment of what is started, which passes it on
_GRACE_S, _END_POLL_S = 10.0, 0.1


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def local_project(sites: Sequence[str], jobs: Sequence[Path], admins: Mapping[str, str]) -> dict[str, Any]:
    """A project file's content: a server of this machine on a free port, sites, and people by name with their role."""
    port = free_port()
    server = {"name": _SERVER, "type": "server", "org": "lead", "fed_learn_port": port, "admin_port": port}
    clients = [{"name": site, "type": "client", "org": f"org_{index}"} for index, site in enumerate(sites)]
    people = [{"name": name, "type": "admin", "org": "lead", "role": role} for name, role in admins.items()]
    own = {"jobs": [str(job.resolve()) for job in jobs]}
    return {"api_version": 3, "name": "local", "participants": [server, *clients, *people], "fedfms": own}


def open_all(federation: Path, kits: Path) -> dict[str, Path]:
    """Open every kit of a federation, as its participants do; the folders by name."""
    found = {}
    for sealed in sorted((federation / "kits").glob(f"*{SUFFIX}")):
        name = sealed.name.removesuffix(SUFFIX)
        secret = (federation / "passphrases" / f"{name}.txt").read_text(encoding="utf-8").strip()
        open_kit(sealed, kits / name, secret)
        found[name] = kits / name
    return found


class Running:
    """Processes of opened kits. Leave it with `stop`, or as a context."""

    def __init__(self, kits: Mapping[str, Path], environment: Mapping[str, str] | None = None) -> None:
        self.kits = dict(kits)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # a kit's script says `python3`
        self._environment = {**own_environment(), "PATH": path, **(environment or {})}
        self._mark = uuid.uuid4().hex
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str) -> None:
        """Start a server or site; what it prints is in `console.log` of its kit."""
        kit = self.kits[name]
        with os.fdopen(os.open(kit / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self._processes[name] = subprocess.Popen(
                ["bash", str(kit / "startup" / "sub_start.sh"), "--once"],
                cwd=kit, env=self._environment | {_MARK: f"{self._mark} {name}"}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, umask=0o077,
            )  # fmt: skip

    def log(self, name: str) -> str:
        """What a server or site has logged."""
        path = self.kits[name] / "console.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def alive(self, name: str) -> bool:
        """Does its process run?"""
        return name in self._processes and self._processes[name].poll() is None

    def stop(self) -> None:
        """End all processes that were started, and those that they started."""
        self._end("")
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def end(self, name: str) -> None:
        """End a server or site, with its jobs."""
        self._end(name)
        self._processes.pop(name).wait()

    def _end(self, name: str) -> None:
        """End what bears our mark and that name (all, if empty): a job is in a session of its own, and outlives the
        server or site that started it."""
        begun, told = time.monotonic(), set[psutil.Process]()
        while (found := self._marked(name)) and (passed := time.monotonic() - begun) < 2 * _GRACE_S:
            for process in found:
                with suppress(psutil.Error):
                    if passed > _GRACE_S:
                        process.kill()
                    elif process not in told:  # once: what ends in order is not to be disturbed
                        process.terminate()
            told.update(found)
            time.sleep(_END_POLL_S)

    def _marked(self, name: str) -> list[psutil.Process]:
        """Processes that run and were started here, or by one that was."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mark, _, owner = process.environ().get(_MARK, "").partition(" ")
                if mark == self._mark and name in ("", owner) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait(self, what: str, ready: Callable[[], bool], limit_s: float, may_end: Sequence[str] = ()) -> None:
        """Poll until something is so.

        Raises:
            ProvisioningError: it was not in time, or a process has ended that is not one of `may_end`.
        """
        until = time.monotonic() + limit_s
        while not ready():
            dead = [name for name in self._processes if not self.alive(name) and name not in may_end]
            if dead:
                raise ProvisioningError(f"{', '.join(dead)} ended", where=what, do="look at console.log in its kit")
            if time.monotonic() > until:
                raise ProvisioningError(f"not within {limit_s:.0f} s", where=what, do="look at console.log in the kits")
            time.sleep(POLL_S)

    def start_all(self, sites: Sequence[str], admin: str, limit_s: float) -> None:
        """Start the server and sites, and wait until all have registered."""
        self.start(_SERVER)
        port = _port(self.kits[admin])
        self.wait("the server", lambda: _listens(port), limit_s)
        for site in sites:
            self.start(site)
        self.wait("the sites", lambda: set(sites) <= set(self.registered(admin)), limit_s)

    def registered(self, admin: str) -> list[str]:
        """Names of the sites that the server knows."""
        return registered(self.kits[admin])


def _port(kit: Path) -> int:
    config = json.loads((kit / "startup" / "fed_admin.json").read_text(encoding="utf-8"))["admin"]
    return int(config.get("port") or str(config["target"]).rsplit(":", 1)[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def prepare(
    out: Path, sites: Sequence[str], jobs: Sequence[Path], admins: Mapping[str, str], passphrase: str = ""
) -> dict[str, Path]:
    """Make a federation of this machine in a new folder, and open its kits; the folders by name.

    Raises:
        ProvisioningError: it cannot be made.
    """
    out.mkdir(parents=True, mode=0o700)
    write_atomic(out / "project.yml", yaml.safe_dump(local_project(sites, jobs, admins)), mode=0o600)
    make(out / "project.yml", out / "federation", passphrase or make_passphrase())
    (out / "kits").mkdir(mode=0o700)
    return open_all(out / "federation", out / "kits")


def demo(out: Path, jobs: Sequence[Path], limit_s: float, show: Show = lambda *_: None) -> list[Path]:
    """Run jobs in a federation of this machine; the server's folder of each run. Nothing of it runs afterwards.

    Args:
        show: is told what each site's preflight for each job has found.

    Raises:
        ProvisioningError: it cannot be made, does not come up in time, a preflight fails, or a job does not end well.
    """
    sites = sorted({site for job in jobs for site in _sites(job)}) or ["site-1", "site-2", "site-3"]
    with Running(prepare(out, sites, jobs, {ADMIN: "project_admin", LEAD: "lead"})) as running:
        running.start_all(sites, ADMIN, limit_s)
        for job, site in itertools.product(jobs, sites):
            look(running.kits[site], site, job, show)
        lead = running.kits[LEAD]
        ids = [send(job, lead) for job in jobs]  # all at once: the server's scheduler lets them share the machine
        found = [watch_job(id_, lead, out, limit_s=limit_s).completed() for id_ in ids]
        ask(running.kits[ADMIN], "system", "shutdown", "all", "--force")
    return found


def look(kit: Path, site: str, job: Path, show: Show) -> None:
    """A site's preflight for a job.

    Raises:
        ProvisioningError: a check fails.
    """
    rows = list(preflight(Context(kit, job)))
    show(site, job.name, rows)
    if failed(rows):
        raise ProvisioningError(f"the preflight fails: {', '.join(failed(rows))}", where=site, do="see its rows")


def _sites(job: Path) -> list[str]:
    """The sites that a job names, if it does."""
    try:
        places = json.loads((job / "meta.json").read_text(encoding="utf-8"))["deploy_map"][APP]
    except (OSError, ValueError, KeyError):
        raise ProvisioningError("this is not a job of this package", where=job.name, do="name its folder") from None
    return [place for place in places if place not in ("server", "@ALL")]
