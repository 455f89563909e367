"""The command line: `python -m provisioning`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedfms.errors import FedfmsError, ProvisioningError
from provisioning import kit as kits
from provisioning.deployment import Deployment, Made, make
from provisioning.policy import BLOCKED, allow
from provisioning.project import MAX_JOB_MB, TEMPLATE
from provisioning.secret import ENV, passphrase

_EPILOG = f"""\
the lead, who makes all keys:
  python -m provisioning template > project.yml                 names, hosts, ports: edit
  python -m provisioning make --project project.yml --out FED   FED/kits, FED/passphrases, FED/checksums.txt
  python -m provisioning add hospital-d --org hospital_d --out FED
  python -m provisioning replace hospital-b --out FED           a lost kit: a new one, and the old one is blocked
  python -m provisioning renew hospital-b --out FED             before it expires
  python -m provisioning block hospital-b --out FED --server KIT
  python -m provisioning expiry --out FED                       exit code 1 when one has under 30 days
the way in which a site's private key never leaves it; codes are told by telephone:
  site  python -m provisioning request hospital-e --org hospital_e --project fedfms-study --out MINE
  lead  python -m provisioning approve hospital-e.request.zip --code CODE --out FED      again, to renew
  site  python -m provisioning package hospital-e.signed.zip --request MINE --code CODE --job JOB --into KIT
a run:
  fedfms submit JOB --kit LEAD --out DIR                        the same job that the simulator runs
  python -m provisioning federation --job JOB --out DIR         all on this machine, over mTLS; `make federation`
whoever gets a kit:
  python -m provisioning open hospital-a.kit --into KIT         prints the code to compare by telephone
  python -m provisioning verify KIT                             has somebody changed it since?
  python -m provisioning allow JOB --kit KIT                    a site: what this job shares may leave

A passphrase comes from --passphrase-file (mode 0600), from {ENV}, or from the terminal. Those of kits are made, one
each: tell them on another way than the kit's.
"""
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_COMPARE = "compare it by telephone with the lead's"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 a fault told in one line (or a finding), 2 wrong usage."""
    os.umask(0o077)
    args = _parser().parse_args(argv)
    try:
        with _told_to_end():
            return int(args.run(args) or 0)
    except FedfmsError as error:
        print(f"provisioning: {error.line()}", file=sys.stderr)
    except OSError as error:  # its own text would name the path
        print(f"provisioning: cannot read or write: {error.strerror}; check space and rights", file=sys.stderr)
    except KeyboardInterrupt:
        print("provisioning: interrupted", file=sys.stderr)
    return 1


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Whoever is told to end, by a signal or because the terminal is gone, first takes away what must not stay: the
    root's key in the open, processes of a federation. Once, so that a second signal does not stop that."""

    def end(*_: object) -> None:
        for number in _ENDS:
            signal.signal(number, lambda *_: None)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m provisioning", description="Startup kits of a federation: made, hardened, replaced, watched.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    template = commands.add_parser("template", help="print a project file to copy")
    template.set_defaults(run=lambda _: print(TEMPLATE.read_text(encoding="utf-8"), end=""))
    new = commands.add_parser("make", help="a new federation: its root, and a sealed kit for each participant")
    new.add_argument("--project", required=True, type=Path, metavar="FILE")
    _add_out(new, "the folder to make")
    new.set_defaults(run=_make)
    _add_changes(commands)
    _add_kits(commands)
    _add_distributed(commands)
    _add_runs(commands)
    return parser


def _add_changes(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = commands.add_parser("add", help="a kit for a newcomer; nobody else's changes")
    add.add_argument("name")
    add.add_argument("--org", required=True)
    add.add_argument("--role", choices=("project_admin", "org_admin", "lead", "member"), help="of a person")
    add.set_defaults(run=_add)
    replace = commands.add_parser("replace", help="a kit is lost or stolen: a new one; the old one's serial is blocked")
    renew = commands.add_parser("renew", help="a kit with a new certificate, before the old one expires")
    block = commands.add_parser("block", help="put a certificate on the server's list of those it refuses")
    for one, run in ((replace, _replace), (renew, _renew), (block, _block)):
        one.add_argument("name", nargs="?" if one is block else None)
        one.set_defaults(run=run)
    block.add_argument("--serial", help="default: the newest of that name")
    for one in (replace, block):
        one.add_argument("--server", type=Path, metavar="KIT", help="the server's kit, if it is here: counts at once")
    expiry = commands.add_parser("expiry", help="certificates and the days they have left")
    expiry.set_defaults(run=_expiry)
    for one in (add, replace, renew, block, expiry):
        _add_out(one, "the federation's folder")


def _add_kits(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    opened = commands.add_parser("open", help="open a sealed kit")
    opened.add_argument("kit", type=Path)
    opened.add_argument("--into", required=True, type=Path, metavar="DIR", help="a new folder")
    opened.add_argument("--passphrase-file", type=Path, metavar="FILE", help="of mode 0600")
    opened.set_defaults(run=_open)
    verify = commands.add_parser("verify", help="compare an opened kit with what was sealed")
    verify.add_argument("kit", type=Path)
    verify.set_defaults(run=_verify)
    allowed = commands.add_parser("allow", help="a site: what these jobs share may leave it, beside what could")
    allowed.add_argument("jobs", type=Path, nargs="+", metavar="JOB")
    allowed.add_argument("--kit", required=True, type=Path)
    allowed.set_defaults(run=_allow)


def _add_distributed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    asked = commands.add_parser("request", help="a site: make a key that stays here, and a request to the lead")
    asked.add_argument("name")
    asked.add_argument("--org", required=True)
    asked.add_argument("--project", required=True, metavar="NAME", help="the federation's, as the lead told it")
    asked.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    asked.set_defaults(run=_request)
    approved = commands.add_parser("approve", help="the lead: sign a site's request")
    approved.add_argument("request", type=Path, metavar="NAME.request.zip")
    approved.add_argument("--code", required=True, help="as the site told it by telephone")
    _add_out(approved, "the federation's folder")
    approved.set_defaults(run=_approve)
    packed = commands.add_parser("package", help="a site: the kit, from its own key and the lead's answer")
    packed.add_argument("signed", type=Path, metavar="NAME.signed.zip")
    packed.add_argument("--request", required=True, type=Path, metavar="DIR", help="what `request` made")
    packed.add_argument("--code", required=True, help="of the root, as the lead told it by telephone")
    packed.add_argument("--into", required=True, type=Path, metavar="DIR", help="a new folder: the kit")
    packed.add_argument("--job", type=Path, action="append", default=[], help="what it shares may leave this site")
    packed.set_defaults(run=_package)


def _add_runs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    local = commands.add_parser("federation", help="a federation of this machine, in processes of their own, runs jobs")
    local.add_argument("--job", required=True, type=Path, action="append", dest="jobs")
    local.set_defaults(run=_federation)
    local.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder, for the results")
    local.add_argument("--limit-s", type=float, default=600.0, metavar="S", help="of a job; default 600")


def _add_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help=what)
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="of mode 0600; of the root's key")


def _make(args: argparse.Namespace) -> None:
    _tell(make(args.project, args.out, passphrase(args.passphrase_file, new=True)), args.out)


def _add(args: argparse.Namespace) -> None:
    kind = {"type": "admin", "role": args.role} if args.role else {"type": "client"}
    newcomer = {"name": args.name, "org": args.org, **kind}
    made = Deployment(args.out).add(newcomer, passphrase(args.passphrase_file))
    _tell([made], args.out)


def _renew(args: argparse.Namespace) -> None:
    _tell([Deployment(args.out).renew(args.name, passphrase(args.passphrase_file))], args.out)


def _replace(args: argparse.Namespace) -> None:
    _server_first(args)
    made, serials = Deployment(args.out).replace(args.name, passphrase(args.passphrase_file))
    _tell([made], args.out)
    _blocked(args, serials)


def _block(args: argparse.Namespace) -> None:
    deployment = Deployment(args.out)
    if args.name is None and args.server is None:
        raise ProvisioningError("nobody is named", do="name whom to block, or with --server where to put the list")
    _server_first(args)
    _blocked(args, [] if args.name is None else deployment.block(args.name, args.serial))


def _server_first(args: argparse.Namespace) -> None:
    """A wrong --server ends the command before anything is made or blocked."""
    if args.server is not None:
        kits.blocked_list(args.server)


def _blocked(args: argparse.Namespace, serials: list[str]) -> None:
    for serial in serials:
        print(f"blocked: {serial}  {args.name}")
    if args.server is None:
        print(f"now at the server: copy blocked.json to KIT/local/{BLOCKED}; it counts at once")
    else:
        kits.put_blocked(args.out / "blocked.json", args.server)


def _tell(made: list[Made], out: Path) -> None:
    for one in made:
        print(f"{one.code}  {one.name}")
    print(f"{out}/kits: send each; {out}/passphrases: tell each on another way, then delete both")
    print("compare the codes above by telephone, when the kits are opened")


def _expiry(args: argparse.Namespace) -> int:
    now, table, soon = datetime.now(timezone.utc), Table("name", "type", "state", "days left", "until", "serial"), False
    for one in Deployment(args.out).issued:
        left = kits.days_left(datetime.fromisoformat(one.until), now)
        near = one.state == "current" and left < kits.SOON
        soon = soon or near
        days = f"{left}{' renew now' if near else ''}"
        table.add_row(one.name, one.type, one.state, days, one.until[:10], one.serial)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return int(soon)


def _open(args: argparse.Namespace) -> None:
    code = kits.open_kit(args.kit, args.into, passphrase(args.passphrase_file))
    print(f"{code}  {_COMPARE}")


def _verify(args: argparse.Namespace) -> int:
    startup, local = kits.changes(args.kit)
    print(f"{kits.code(args.kit)}  {_COMPARE}")
    for name in local:
        print(f"changed here, as a site may: {name}")
    for name in startup:
        print(f"CHANGED: {name}")
    return int(bool(startup))


def _allow(args: argparse.Namespace) -> None:
    print(f"{allow(args.kit, args.jobs)} tensors, by name, may leave this site; restart its client")


def _request(args: argparse.Namespace) -> None:
    from provisioning.distributed import request

    sent, code = request(args.name, args.org, args.project, args.out)
    print(f"{code}  tell it to the lead by telephone, and send {sent}; the key stays in this folder")


def _approve(args: argparse.Namespace) -> None:
    from provisioning.distributed import approve, who

    name, org = who(args.request)
    signed, code = approve(Deployment(args.out), args.request, args.code, passphrase(args.passphrase_file))
    print(f"for the site {name} of {org}; if it is not they who told you the code: `block {name}`")
    print(f"{code}  the root's: tell it to the site by telephone, and send {signed}")


def _package(args: argparse.Namespace) -> None:
    from provisioning.distributed import package

    code = package(args.signed, args.request, args.code, args.into, args.job, MAX_JOB_MB)
    print(f"{code}  the kit's, to know it again: `verify`")


def _federation(args: argparse.Namespace) -> int:
    from fedfms.cli.preflight import teller
    from provisioning.federation import demo

    valid = True
    for run in demo(args.out.resolve(), [job.resolve() for job in args.jobs], args.limit_s, teller()):
        report = run / "fedfms" / "report"
        print((report / "table.md").read_text(encoding="utf-8"))
        print(run)
        valid = valid and json.loads((report / "results.json").read_text(encoding="utf-8"))["valid"]
    return 0 if valid else 1
