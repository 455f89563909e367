"""A federation's folder at its lead: the sealed root key, who was given which certificate, kits on their way.

    OUT/project.yml    who takes part        OUT/issued.jsonl   certificates given out: no secret in it
    OUT/ca.sealed      the root's key        OUT/rootCA.pem     the root, which every kit holds
    OUT/kits/          sealed kits           OUT/passphrases/   one each, to be told on another way; then delete both
    OUT/checksums.txt  codes to read out     OUT/blocked.json   serials that the server is to refuse

No private key of a participant stays here: whoever loses a kit is given another, under a new key.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.nvflare_cli import nvflare
from provisioning.kit import SUFFIX, certificate, common_name, seal_kit
from provisioning.policy import BLOCKED, sizes_of, write_policy
from provisioning.project import Project, check_participant, load_project
from provisioning.sealed import SealError, restrict, seal, unseal
from provisioning.secret import make_passphrase

_WORK = ".work."
_ROOT_CERT, _ROOT_KEY = "root_cert", "root_pri_key"  # as NVFLARE's state/cert.json names them


@dataclass(frozen=True)
class Issued:
    """A certificate that was given out; `state` is current, renewed (there is a newer one) or blocked."""

    name: str
    type: str
    serial: str
    until: str
    made: str
    state: str = "current"


@dataclass(frozen=True)
class Made:
    """A kit that was made: its code, for the telephone."""

    name: str
    code: str


class Deployment:
    """The folder of a federation.

    Raises:
        ProvisioningError: the folder holds none.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "ca.sealed").is_file():
            raise ProvisioningError("there is no federation in this folder", where=folder.name, do="name another")
        self.folder = folder.resolve()
        self.project = load_project(self.folder / "project.yml")
        self._inside = False

    @property
    def issued(self) -> list[Issued]:
        """All certificates that were given out, in order."""
        return [Issued(**json.loads(line)) for line in (self.folder / "issued.jsonl").read_text().splitlines()]

    def current(self, name: str) -> Issued:
        """The newest certificate of a participant.

        Raises:
            ProvisioningError: it has none.
        """
        found = [one for one in self.issued if one.name == name]
        if not found:
            known = sorted({one.name for one in self.issued})
            raise ProvisioningError(f"nobody of the name {name!r} has a certificate", do=f"one of {known}")
        return found[-1]

    def add(self, participant: dict[str, Any], passphrase: str) -> Made:
        """A kit for a newcomer; nobody else's changes.

        Raises:
            ProvisioningError: the name is taken, the passphrase is wrong, NVFLARE refuses.
        """
        check_participant(participant)
        with self.alone():
            if participant["name"] in {one.name for one in self.issued} or participant["type"] == "server":
                raise ProvisioningError("the name is taken, or is a second server's", where=participant["name"])
            project = replace(self.project, participants=(*self.project.participants, participant))
            made = self._make(project, passphrase, participant["name"])
            self.project = project
            _write(self.folder / "project.yml", yaml.safe_dump(project.to_dict(), sort_keys=False))
        return made

    def renew(self, name: str, passphrase: str) -> Made:
        """A kit with a new key and certificate for one who has one; the old one is good until it expires or is blocked.

        Raises:
            ProvisioningError: there is no such participant, or it made its key itself; the passphrase is wrong.
        """
        self.current(name)
        with self.alone():
            if name not in {one["name"] for one in self.project.participants}:
                do = "`block` refuses the old one; let the site make a request again"
                raise ProvisioningError("its key never was here", where=name, do=do)
            made = self._make(self.project, passphrase, name)
            self._mark_older(name)
        return made

    def replace(self, name: str, passphrase: str) -> tuple[Made, list[str]]:
        """As `renew`, for a kit that is lost: all certificates of the name before are blocked; their serials.

        Raises:
            ProvisioningError: as `renew`.
        """
        with self.alone():
            made = self.renew(name, passphrase)
            *older, _ = [one.serial for one in self.issued if one.name == name]
            return made, [serial for one in older for serial in self.block(name, one)]

    def block(self, name: str, serial: str | None = None) -> list[str]:
        """Put a certificate of `name` (the newest, unless its serial is given) on the list that the server is to get.

        Raises:
            ProvisioningError: there is no such certificate.
        """
        with self.alone():
            chosen = serial or self.current(name).serial
            if not any(one.name == name and one.serial == chosen for one in self.issued):
                raise ProvisioningError("there is no such certificate", where=name, do="`expiry` lists them")
            self._rewrite([replace(one, state="blocked") if one.serial == chosen else one for one in self.issued])
            blocked = {one.serial: one.name for one in self.issued if one.state == "blocked"}
            _write(self.folder / "blocked.json", json.dumps({"serials": blocked}, indent=2) + "\n")
        return [chosen]

    def record(self, found: x509.Certificate, kind: str) -> None:
        """Note a certificate that was given out; an older one of the same name is a renewed one's."""
        with self.alone():
            self._rewrite([*self.issued, _issued(found, kind)])
            self._mark_older(common_name(found))

    @contextmanager
    def root(self, passphrase: str) -> Iterator[Path]:
        """A folder with the root's certificate and key as NVFLARE's state, gone when the block ends.

        Raises:
            ProvisioningError: the passphrase is wrong, or another command is at work with the root.
        """
        try:
            content = json.loads(unseal((self.folder / "ca.sealed").read_bytes(), passphrase))
        except SealError as error:
            raise ProvisioningError(str(error), where="ca.sealed") from None
        with self.alone(), work_folder(self.folder) as work:
            write_atomic(work / "cert.json", json.dumps(content), mode=0o600)
            yield work

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands out while this one reads and writes the folder; within itself it is entered at once.

        What a command that was killed has left is taken away: the root's key in the open.

        Raises:
            ProvisioningError: another command is at work here.
        """
        if self._inside:
            yield
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProvisioningError("another command is at work in this folder", do="wait for its end") from None
            self._inside = True
            self.project = load_project(self.folder / "project.yml")  # another may have changed it since
            for left in self.folder.glob(f"{_WORK}*"):
                shutil.rmtree(left)
            yield
        finally:
            self._inside = False
            os.close(descriptor)

    def _make(self, project: Project, passphrase: str, name: str) -> Made:
        with self.root(passphrase) as work:
            state = work / "ws" / project.name / "state"
            state.mkdir(parents=True)
            (work / "cert.json").replace(state / "cert.json")
            (made,) = _provision(project, work, self.folder, only=name)
        return made

    def _mark_older(self, name: str) -> None:
        """The newest certificate of a name is the current one; it has renewed those before it."""
        *older, _ = [one.serial for one in self.issued if one.name == name and one.state == "current"]
        self._rewrite([replace(one, state="renewed") if one.serial in older else one for one in self.issued])

    def _rewrite(self, issued: list[Issued]) -> None:
        _write(self.folder / "issued.jsonl", "".join(json.dumps(asdict(one)) + "\n" for one in issued))


def make(project_file: Path, folder: Path, passphrase: str) -> list[Made]:
    """Make a federation: its root, and a sealed kit for each participant, in a new folder that others cannot read.

    Raises:
        ProvisioningError: the project is none, the folder is there, NVFLARE refuses.
    """
    project = load_project(project_file)
    if folder.exists():
        raise ProvisioningError("the folder is there already", where=folder.name, do="name another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent.resolve(), prefix=f".{folder.name}."))
    try:
        for name in ("kits", "passphrases"):
            (fresh / name).mkdir()
        _write(fresh / "issued.jsonl", "")
        _write(fresh / "project.yml", yaml.safe_dump(project.to_dict(), sort_keys=False))
        with work_folder(fresh) as work:
            made = _provision(project, work, fresh)
            state = json.loads((work / "ws" / project.name / "state" / "cert.json").read_text())
        root = {key: state[key] for key in (_ROOT_CERT, _ROOT_KEY)}
        _write(fresh / "rootCA.pem", root[_ROOT_CERT])
        _write(fresh / "ca.sealed", seal(json.dumps(root).encode(), passphrase))
        _write(fresh / "blocked.json", json.dumps({"serials": {}}) + "\n")
        restrict(fresh)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # there only if something went wrong
    return made


def _provision(project: Project, work: Path, folder: Path, only: str | None = None) -> list[Made]:
    """Let NVFLARE make kits in `work`; write those asked for, sealed, and what is known of them, into `folder`."""
    _write(work / "project.yml", yaml.safe_dump(project.for_nvflare(only), sort_keys=False))
    nvflare("provision", "-p", str(work / "project.yml"), "-w", str(work / "ws"), "--force", folder=work)
    (kits,) = (work / "ws" / project.name).glob("prod_*")
    tensors, made = sizes_of(project.jobs), []
    for one in project.participants:
        if only is not None and one["name"] != only:
            continue
        kit = kits / one["name"]
        write_policy(kit, one["type"], tensors, project.max_job_mb)
        if only is not None and one["type"] == "server":  # a new kit must refuse what the old one did
            shutil.copy(folder / "blocked.json", kit / "local" / BLOCKED)
        passphrase = make_passphrase()
        _write(folder / "passphrases" / f"{one['name']}.txt", passphrase + "\n")
        made.append(Made(one["name"], seal_kit(kit, folder / "kits" / f"{one['name']}{SUFFIX}", passphrase)))
        note(folder, made[-1], _issued(certificate(kit), one["type"]))
    return made


def note(folder: Path, made: Made, issued: Issued) -> None:
    """Write down a kit's code and certificate."""
    checksums = folder / "checksums.txt"
    before = checksums.read_text().splitlines() if checksums.is_file() else []
    lines = {line.split("  ", 1)[1]: line for line in before} | {made.name: f"{made.code}  {made.name}"}
    _write(checksums, "".join(f"{line}\n" for _, line in sorted(lines.items())))
    path = folder / "issued.jsonl"
    _write(path, path.read_text() + json.dumps(asdict(issued)) + "\n")


def _issued(found: x509.Certificate, kind: str) -> Issued:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    until = found.not_valid_after_utc.isoformat(timespec="seconds")
    return Issued(common_name(found), kind, format(found.serial_number, "x"), until, now)


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder for keys in the open, beside what they become, and gone afterwards whatever happens."""
    work = Path(tempfile.mkdtemp(dir=folder, prefix=_WORK))
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _write(path: Path, content: str | bytes) -> None:
    write_atomic(path, content, mode=0o600)
