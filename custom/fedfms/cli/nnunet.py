"""`fedfms fingerprint`, at each site, and `fedfms plan`, at whoever builds the job: nnU-Net's planning, federated."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fedfms.cli.files import read_json, write
from fedfms.errors import DataError, StudyError
from fedfms.study import check_sites_known, find_study, load_study


def add_commands(commands: Any) -> None:
    """Add both to the subparsers of `fedfms`."""
    site = commands.add_parser("fingerprint", help="at a site: sums over its training images, for nnU-Net's plan")
    site.add_argument("study", help="a YAML file, or the name of a packaged study")
    site.add_argument("--site", required=True, help="this site's name in the study")
    site.add_argument("--site-settings", type=Path, help="its fedfms_site.yaml (default: the one FEDFMS_SITE names)")
    site.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study")
    site.add_argument("--out", required=True, type=Path, help="the file to write, and to hand over: JSON")
    site.set_defaults(run=_fingerprint)
    plan = commands.add_parser("plan", help="nnU-Net's plan from the fingerprints of all sites")
    plan.add_argument("fingerprints", nargs="+", type=Path, metavar="FILE.json")
    plan.add_argument("--out", required=True, type=Path, help="for `fedfms job build fednnunet --plan`")
    plan.set_defaults(run=_plan)


def read_plan(path: Path) -> dict[str, Any]:
    """The `plan` of a file that `fedfms plan` wrote.

    Raises:
        StudyError: it cannot be read, or has none.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("plan"), dict):
        raise StudyError(f"{path.name} holds no plan", where="--plan", do="make it with `fedfms plan`")
    return dict(content["plan"])


def _fingerprint(args: argparse.Namespace) -> str:
    from fedfms.data import open_site
    from fedfms.data.fingerprint import fingerprint
    from fedfms.settings import load_settings

    study = load_study(find_study(args.study), overrides=args.set)
    check_sites_known(study, [args.site], "--site")
    content = fingerprint(open_site(study, args.site, load_settings(named=args.site_settings))).to_dict()
    text = json.dumps(content, indent=1)
    write(args.out, text + "\n")
    return f"{text}\n{args.out}: all that is above, and nothing else"


def _plan(args: argparse.Namespace) -> str:
    from fedfms.data.fingerprint import Fingerprint, merge
    from fedfms.models.nnunet_plan import plan_for

    parts = []
    for path in args.fingerprints:
        try:
            parts.append(Fingerprint.from_dict(read_json(path)))
        except DataError as error:
            raise error.at(path.name) from error
    merged = merge(parts)
    height_px, width_px = (merged.side(axis, 0.5) for axis in ("heights", "widths"))
    plan = plan_for(height_px, width_px, merged.images, len(merged.structures))
    text = json.dumps({"plan": plan.to_dict(), "made_of": merged.summary()}, indent=1)
    write(args.out, text + "\n")
    return f"{text}\n{args.out}: {len(plan.strides)} stages at {plan.input_px} px"
