"""`fedfms kits`: make, open, renew and revoke the startup kits of a federation."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from fedfms.cli.options import Commands, Parser, Run, add_command, add_shared, positive_float
from fedfms.cli.preflight import printer
from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.kit import RENEWAL_DAYS, changed_files, days_left, kit_fingerprint
from fedfms.provisioning.deployment import Deployment, NewKit, create_federation
from fedfms.provisioning.kit import open_kit, revocation_list
from fedfms.provisioning.passphrase import PASSPHRASE_VARIABLE, read_passphrase
from fedfms.provisioning.policy import REVOKED, allow
from fedfms.provisioning.project import MAX_JOB_MB, TEMPLATE, Role

_EPILOG = f"""\
the lead makes all keys, or a site makes its own; see RUNBOOK.md in fedfms.provisioning:
  fedfms kits make --project project.yml --out FED
  fedfms kits replace hospital-b --out FED --server KIT
  fedfms kits request hospital-e --org hospital_e --project fedfms-study --out MINE
  fedfms kits approve hospital-e.request.zip --fingerprint F --out FED
  fedfms kits package hospital-e.signed.zip --request MINE --fingerprint F --job JOB --into KIT

Passphrases are read from --passphrase-file (mode 0600), from {PASSPHRASE_VARIABLE}, or from the terminal. Each kit gets
its own generated passphrase: send it separately from the kit.
"""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_COMPARE = "compare it with the lead's by telephone"
_FEDERATION = ("--out", "--passphrase-file")
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"help": "of a site, a server or a person, as in the project file"},
    "kit": {"type": Path, "help": "a kit"},
    "--org": {"required": True, "help": "the organisation, as in its certificate"},
    "--fingerprint": {"required": True, "help": "from the other side by telephone"},
    "--into": {"required": True, "type": Path, "metavar": "DIR", "help": "a new folder for the kit"},
    "--out": {"required": True, "type": Path, "metavar": "DIR", "help": "the federation's folder, or a new one"},
    "--passphrase-file": {"type": Path, "metavar": "FILE", "help": "a file of mode 0600"},
    "--server": {"type": Path, "metavar": "KIT", "help": "the server's opened kit, if it is here: update its list"},
}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first signal to end into KeyboardInterrupt, so that decrypted keys and processes are cleaned up; ignore
    later ones.
    """

    def interrupt(*_: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def add_commands(kits: Parser) -> None:
    """Add the commands of `fedfms kits`."""
    kits.description, kits.epilog = "Make, renew, revoke and open the startup kits of a federation.", _EPILOG
    commands = kits.add_subparsers(required=True, metavar="COMMAND")
    _add_lead_commands(commands)
    _add_site_commands(commands)


def _command(
    commands: Commands, name: str, run: Run, text: str, *arguments: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with arguments of `_ARGUMENTS`; its files are the user's own, and a signal ends it cleanly."""

    def protected(args: argparse.Namespace) -> str | int | None:
        os.umask(0o077)
        with _interruptible():
            return run(args)

    command = add_command(commands, name, protected, help=text, example=f"fedfms kits {name}{example}")
    for argument in arguments:
        command.add_argument(argument, **_ARGUMENTS[argument])
    return command


def _add_lead_commands(commands: Commands) -> None:
    _command(commands, "template", _template, "print an example project file", example=" > project.yml")
    text = "a new federation: its root, and an encrypted kit for each participant"
    make = _command(commands, "make", _make, text, *_FEDERATION, example=" --project project.yml --out FED")
    make.add_argument("--project", required=True, type=Path, metavar="FILE", help="a file as `template` prints it")
    text, example = "a kit for a new participant; no other kit changes", " hospital-d --org hospital_d --out FED"
    add = _command(commands, "add", _add, text, "name", "--org", *_FEDERATION, example=example)
    add.add_argument("--role", choices=get_args(Role), help="of a person (default: a site)")
    text, example = "replace a lost kit: make a new one, revoke the old certificate", " hospital-b --out FED"
    _command(commands, "replace", _replace, text, "name", "--server", *_FEDERATION, example=example)
    text = "a new kit, before its certificate expires"
    _command(commands, "renew", _renew, text, "name", *_FEDERATION, example=" hospital-b --out FED")
    text, example = "add a certificate to the revocation list", " hospital-c --out FED --server KIT"
    revoke = _command(commands, "revoke", _revoke, text, "--server", *_FEDERATION, example=example)
    revoke.add_argument("name", nargs="?", help="a participant (default: none; the list is written again)")
    revoke.add_argument("--serial", help="of its certificate (default: the newest of that name)")
    text = "list certificates and the days until they expire; exit code 1 if one must be renewed"
    _command(commands, "expiry", _expiry, text, *_FEDERATION, example=" --out FED")
    text, example = "sign a site's request", " hospital-e.request.zip --fingerprint F --out FED"
    approve = _command(commands, "approve", _approve, text, "--fingerprint", *_FEDERATION, example=example)
    approve.add_argument("request", type=Path, metavar="NAME.request.zip", help="from the site's `request`")
    text, example = "run jobs in a federation of processes on this machine", " --job jobs/fedmsa --out workspace/local"
    local = _command(commands, "federation", _federation, text, "--out", example=example)
    local.add_argument("--job", required=True, type=Path, action="append", dest="jobs", help="a job; repeatable")
    local.add_argument(
        "--timeout-s", type=positive_float, default=600.0, metavar="S", help="limit of a job (default: 600)"
    )


def _add_site_commands(commands: Commands) -> None:
    text, example = "open an encrypted kit", " hospital-a.kit --into KIT"
    _command(commands, "open", _open, text, "kit", "--into", "--passphrase-file", example=example)
    _command(commands, "verify", _verify, "list files of an opened kit that were changed", "kit", example=" KIT")
    text, example = "add the tensors that these jobs share to the site's allow-list", " jobs/fedmsa --kit KIT"
    allowed = _command(commands, "allow", _allow, text, example=example)
    allowed.add_argument("jobs", type=Path, nargs="+", metavar="JOB", help="a job folder")
    add_shared(allowed, "--kit")
    text = "make a key, which stays here, and a request"
    example = " hospital-e --org hospital_e --project fedfms-study --out MINE"
    request = _command(commands, "request", _request, text, "name", "--org", "--out", example=example)
    request.add_argument("--project", required=True, metavar="NAME", help="the federation's name, from the lead")
    text = "make the kit from the site's key and the lead's answer"
    example = " hospital-e.signed.zip --request MINE --fingerprint F --job JOB --into KIT"
    package = _command(commands, "package", _package, text, "--fingerprint", "--into", example=example)
    package.add_argument("signed", type=Path, metavar="NAME.signed.zip", help="the lead's answer")
    package.add_argument("--request", required=True, type=Path, metavar="DIR", help="the folder of `request`")
    package.add_argument("--job", type=Path, action="append", default=[], help="the tensors that it shares may leave")


def _template(_: argparse.Namespace) -> None:
    print(TEMPLATE.read_text(encoding="utf-8"), end="")


def _make(args: argparse.Namespace) -> None:
    _print_kits(create_federation(args.project, args.out, read_passphrase(args.passphrase_file, new=True)), args.out)


def _add(args: argparse.Namespace) -> None:
    kind = {"type": "admin", "role": args.role} if args.role else {"type": "client"}
    participant = {"name": args.name, "org": args.org, **kind}
    _print_kits([Deployment(args.out).add(participant, read_passphrase(args.passphrase_file))], args.out)


def _renew(args: argparse.Namespace) -> None:
    _print_kits([Deployment(args.out).renew(args.name, read_passphrase(args.passphrase_file))], args.out)


def _replace(args: argparse.Namespace) -> None:
    target = _server_list(args)
    made, serials = Deployment(args.out).replace(args.name, read_passphrase(args.passphrase_file))
    _print_kits([made], args.out)
    _publish(args, serials, target)


def _revoke(args: argparse.Namespace) -> None:
    deployment = Deployment(args.out)
    if args.name is None and args.server is None:
        do = "name a participant, or with --server the kit to write the revocation list to"
        raise ProvisioningError("nothing to revoke", do=do)
    target = _server_list(args)
    _publish(args, [] if args.name is None else [deployment.revoke(args.name, args.serial)], target)


def _server_list(args: argparse.Namespace) -> Path | None:
    """The server's revocation list. A wrong --server ends the command before it changes anything."""
    return None if args.server is None else revocation_list(args.server)


def _publish(args: argparse.Namespace, serials: Iterable[str], target: Path | None) -> None:
    for serial in serials:
        print(f"revoked: {serial}  {args.name}")
    if target is None:
        print(f"next, at the server: copy revoked.json to KIT/local/{REVOKED}; it takes effect at once")
    else:
        write_atomic(target, (args.out / "revoked.json").read_bytes(), mode=0o600)


def _print_kits(made: Sequence[NewKit], out: Path) -> None:
    for one in made:
        print(f"{one.fingerprint}  {one.name}")
    print(f"send the kits in {out}/kits and, separately, the passphrases in {out}/passphrases; then delete both")
    print("compare the fingerprints above by telephone when the kits are opened")


def _expiry(args: argparse.Namespace) -> int:
    now, table, found = datetime.now(timezone.utc), Table("name", "type", "state", "days left", "expires", "serial"), 0
    for one in Deployment(args.out).issued:
        left = days_left(one.expires, now)
        soon = one.state == "current" and left < RENEWAL_DAYS
        found |= soon
        days = f"{left}{' renew now' if soon else ''}"
        table.add_row(one.name, one.type, one.state, days, f"{one.expires:%Y-%m-%d}", one.serial)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(found)


def _open(args: argparse.Namespace) -> None:
    print(f"{open_kit(args.kit, args.into, read_passphrase(args.passphrase_file))}  {_COMPARE}")


def _verify(args: argparse.Namespace) -> int:
    startup, local = changed_files(args.kit)
    print(f"{kit_fingerprint(args.kit)}  {_COMPARE}")
    for name in local:
        print(f"changed by the site, which is allowed: {name}")
    for name in startup:
        print(f"CHANGED: {name}")
    return int(bool(startup))


def _allow(args: argparse.Namespace) -> None:
    print(f"{allow(args.kit, args.jobs)} tensors are on the site's allow-list; restart its client")


def _request(args: argparse.Namespace) -> None:
    from fedfms.provisioning.distributed import request

    archive, fingerprint = request(args.name, args.org, args.project, args.out)
    print(f"{fingerprint}  give it to the lead by telephone, and send {archive}; the key stays in this folder")


def _approve(args: argparse.Namespace) -> None:
    from fedfms.provisioning.distributed import approve, requested_identity

    name, org = requested_identity(args.request)
    passphrase = read_passphrase(args.passphrase_file)
    signed, fingerprint = approve(Deployment(args.out), args.request, args.fingerprint, passphrase)
    print(f"signed for site {name} of {org}; if someone else gave you the fingerprint: `revoke {name}`")
    print(f"{fingerprint}  of the root: give it to the site by telephone, and send {signed}")


def _package(args: argparse.Namespace) -> None:
    from fedfms.provisioning.distributed import package

    fingerprint = package(args.signed, args.request, args.fingerprint, args.into, args.job, MAX_JOB_MB)
    print(f"{fingerprint}  of the kit; `verify` prints it again")


def _federation(args: argparse.Namespace) -> int:
    from fedfms.provisioning.federation import run_jobs

    valid = True
    for run in run_jobs(args.out.resolve(), [job.resolve() for job in args.jobs], args.timeout_s, printer()):
        report = run / "fedfms" / "report"
        print((report / "table.md").read_text(encoding="utf-8"))
        print(run)
        valid = valid and json.loads((report / "results.json").read_text(encoding="utf-8"))["valid"]
    return 0 if valid else 1
