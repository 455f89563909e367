"""The lead's folder of a federation: the encrypted root key, issued certificates, and kits to send.

    OUT/project.yml       participants             OUT/issued.jsonl   issued certificates, without secrets
    OUT/ca.sealed         encrypted root key       OUT/rootCA.pem     root certificate, which every kit holds
    OUT/kits/             encrypted kits           OUT/passphrases/   of the kits: sent separately, then deleted
    OUT/fingerprints.txt  of kits, to read out     OUT/revoked.json   revocation list for the server

No private key of a participant stays here: a lost kit is replaced by one with a new key.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from cryptography import x509

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.kit import common_name, load_certificate
from fedfms.flare.nvflare_cli import run_nvflare
from fedfms.provisioning.certificates import IssuedCertificate, read_issued, read_root, write_issued
from fedfms.provisioning.encryption import EncryptionError, atomic_folder, decrypt, encrypt
from fedfms.provisioning.kit import SUFFIX, encrypt_kit
from fedfms.provisioning.passphrase import generate_passphrase
from fedfms.provisioning.policy import REVOKED, shared_sizes, write_policy
from fedfms.provisioning.project import Project, check_participant, load_project

_WORK = ".work."


@dataclass(frozen=True)
class NewKit:
    """A kit that was made."""

    name: str
    fingerprint: str


class Deployment:
    """The folder of a federation.

    Raises:
        ProvisioningError: also by all methods: the folder holds no federation, or a damaged file; another command uses
            it; the passphrase is wrong; there is no such participant or certificate; NVFLARE fails.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "ca.sealed").is_file():
            raise ProvisioningError("there is no federation in this folder", where=folder.name, do="name another one")
        self.folder = folder.resolve()
        self.project = load_project(self.folder / "project.yml")
        self._is_locked = False

    @property
    def issued(self) -> list[IssuedCertificate]:
        """All issued certificates, in order."""
        return read_issued(self.folder)

    def current(self, name: str) -> IssuedCertificate:
        """The newest certificate of a participant."""
        found = [one for one in self.issued if one.name == name]
        if not found:
            known = sorted({one.name for one in self.issued})
            raise ProvisioningError(f"{name!r} has no certificate", do=f"one of {known}")
        return found[-1]

    def add(self, participant: dict[str, Any], passphrase: str) -> NewKit:
        """Make a kit for a new participant. No other kit changes."""
        new = check_participant(participant, "new participant")
        with self.locked():
            if new.name in {one.name for one in self.issued} or new.type == "server":
                raise ProvisioningError("the name is in use, or it is a second server", where=new.name)
            project = self.project.with_participant(participant)
            made = self._make_kit(project, passphrase, new.name)
            self.project = project
            _write(self.folder / "project.yml", yaml.safe_dump(project.to_dict(), sort_keys=False))
        return made

    def renew(self, name: str, passphrase: str) -> NewKit:
        """Make a kit with a new key and certificate; the old certificate is valid until it expires or is revoked."""
        self.current(name)
        with self.locked():
            if self.project.find(name) is None:
                do = "the site makes a new request; `revoke` blocks the old certificate"
                raise ProvisioningError("this participant made its key itself", where=name, do=do)
            made = self._make_kit(self.project, passphrase, name)
            self._mark_renewed(name)
        return made

    def replace(self, name: str, passphrase: str) -> tuple[NewKit, list[str]]:
        """Renew a lost kit and revoke all older certificates of the name; also returns their serial numbers."""
        with self.locked():
            made = self.renew(name, passphrase)
            *older, _ = [one.serial for one in self.issued if one.name == name]
            return made, [self.revoke(name, serial) for serial in older]

    def revoke(self, name: str, serial: str | None = None) -> str:
        """Add a certificate of `name` (by default the newest) to the revocation list; returns its serial number."""
        with self.locked():
            serial = serial or self.current(name).serial
            if not any(one.name == name and one.serial == serial for one in self.issued):
                raise ProvisioningError("there is no such certificate", where=name, do="`expiry` lists them")
            self._set_state([serial], "revoked")
            revoked = {one.serial: one.name for one in self.issued if one.state == "revoked"}
            _write(self.folder / "revoked.json", json.dumps({"serials": revoked}, indent=2) + "\n")
        return serial

    def record(self, certificate: x509.Certificate, kind: str) -> None:
        """Record an issued certificate; an older current one of the same name becomes `renewed`."""
        with self.locked():
            write_issued(self.folder, [*self.issued, IssuedCertificate.of(certificate, kind)])
            self._mark_renewed(common_name(certificate))

    @contextmanager
    def root_key(self, passphrase: str) -> Iterator[Path]:
        """A temporary folder with the decrypted root certificate and key in NVFLARE's `cert.json`."""
        try:
            content = decrypt((self.folder / "ca.sealed").read_bytes(), passphrase)
        except EncryptionError as error:
            raise ProvisioningError(str(error), where="ca.sealed") from None
        with self.locked(), temporary_folder(self.folder) as work:
            write_atomic(work / "cert.json", content, mode=0o600)
            yield work

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other commands while this one reads and writes it; reentrant.

        Removes what a killed command has left: the decrypted root key.
        """
        if self._is_locked:
            yield
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProvisioningError("another command is using this folder", do="wait until it ends") from None
            self._is_locked = True
            self.project = load_project(self.folder / "project.yml")  # another command may have changed it
            for left in self.folder.glob(f"{_WORK}*"):
                shutil.rmtree(left)
            yield
        finally:
            self._is_locked = False
            os.close(descriptor)

    def _make_kit(self, project: Project, passphrase: str, name: str) -> NewKit:
        with self.root_key(passphrase) as work:
            state = work / "ws" / project.name / "state"
            state.mkdir(parents=True)
            (work / "cert.json").replace(state / "cert.json")
            (made,) = _provision(project, work, self.folder, only=name)
        return made

    def _mark_renewed(self, name: str) -> None:
        *older, _ = [one.serial for one in self.issued if one.name == name and one.state == "current"]
        self._set_state(older, "renewed")

    def _set_state(self, serials: list[str], state: Literal["renewed", "revoked"]) -> None:
        changed = (replace(one, state=state) if one.serial in serials else one for one in self.issued)
        write_issued(self.folder, changed)


def create_federation(project_file: Path, folder: Path, passphrase: str) -> list[NewKit]:
    """Create a federation in a new folder that only its owner can read: a root, and a kit for each participant.

    Raises:
        ProvisioningError: the project file is not valid, the folder exists, or NVFLARE fails.
    """
    project = load_project(project_file)
    if folder.exists():
        raise ProvisioningError("the folder exists", where=folder.name, do="name another one")
    with atomic_folder(folder) as fresh:
        for name in ("kits", "passphrases"):
            (fresh / name).mkdir()
        _write(fresh / "project.yml", yaml.safe_dump(project.to_dict(), sort_keys=False))
        with temporary_folder(fresh) as work:
            made = _provision(project, work, fresh)
            root = read_root(work / "ws" / project.name / "state" / "cert.json")
        _write(fresh / "rootCA.pem", root.root_cert)
        _write(fresh / "ca.sealed", encrypt(json.dumps(asdict(root)).encode(), passphrase))
        _write(fresh / "revoked.json", json.dumps({"serials": {}}) + "\n")
    return made


def _provision(project: Project, work: Path, folder: Path, only: str | None = None) -> list[NewKit]:
    """Let NVFLARE make kits in `work`; encrypt those of all participants or of `only` to `folder`, and record them."""
    _write(work / "project.yml", yaml.safe_dump(project.for_nvflare(only), sort_keys=False))
    run_nvflare("provision", "-p", str(work / "project.yml"), "-w", str(work / "ws"), "--force", folder=work)
    (kits,) = (work / "ws" / project.name).glob("prod_*")
    tensors, made = shared_sizes(project.jobs), []
    for one in project.participants:
        if only is not None and one.name != only:
            continue
        kit = kits / one.name
        write_policy(kit, one.type, tensors, project.max_job_mb)
        if only is not None and one.type == "server":  # a new kit must reject the same certificates as the old one
            shutil.copy(folder / "revoked.json", kit / "local" / REVOKED)
        passphrase = generate_passphrase()
        _write(folder / "passphrases" / f"{one.name}.txt", passphrase + "\n")
        made.append(NewKit(one.name, encrypt_kit(kit, folder / "kits" / f"{one.name}{SUFFIX}", passphrase)))
        _record_kit(folder, made[-1], IssuedCertificate.of(load_certificate(kit), one.type))
    return made


def _record_kit(folder: Path, made: NewKit, issued: IssuedCertificate) -> None:
    path = folder / "fingerprints.txt"
    before = path.read_text().splitlines() if path.is_file() else []
    lines = {line.split("  ", 1)[1]: line for line in before} | {made.name: f"{made.fingerprint}  {made.name}"}
    _write(path, "".join(f"{line}\n" for _, line in sorted(lines.items())))
    write_issued(folder, [*read_issued(folder), issued])


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` for decrypted keys, which is always deleted."""
    work = Path(tempfile.mkdtemp(dir=folder, prefix=_WORK))
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _write(path: Path, content: str | bytes) -> None:
    write_atomic(path, content, mode=0o600)
