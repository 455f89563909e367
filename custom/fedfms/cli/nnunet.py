"""`fedfms fingerprint`, run at each site, and `fedfms plan`, run by the lead: federated nnU-Net planning."""

import argparse
import json
from pathlib import Path
from typing import Any

from fedfms.cli.files import write
from fedfms.cli.options import Commands, add_command, add_shared
from fedfms.errors import DataError, StudyError
from fedfms.schema import read_json
from fedfms.study import check_sites_known, find_study, load_study


def add_commands(commands: Commands) -> None:
    """Add `fedfms fingerprint` and `fedfms plan`."""
    site = add_command(
        commands, "fingerprint", _fingerprint, help="at a site: sums over its training images, for nnU-Net's plan",
        example="fedfms fingerprint polyp --site NAME --out NAME.json",
    )  # fmt: skip
    add_shared(site, "study", "--set", "--site-settings")
    site.add_argument("--site", required=True, metavar="NAME", help="this site's name in the study")
    site.add_argument("--out", required=True, type=Path, metavar="FILE", help="the JSON file to send to the lead")
    plan = add_command(
        commands, "plan", _plan, help="nnU-Net's plan from the fingerprints of all sites",
        example="fedfms plan a.json b.json --out plan.json",
    )  # fmt: skip
    plan.add_argument("fingerprints", nargs="+", type=Path, metavar="FILE.json", help="made by `fedfms fingerprint`")
    plan.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="for `fedfms job build fednnunet --plan FILE`"
    )


def read_plan(path: Path) -> dict[str, Any]:
    """The plan in a file of `fedfms plan`.

    Raises:
        StudyError: the file cannot be read, or contains no plan.
    """
    do = "make it with `fedfms plan`"
    content = read_json(path, StudyError, where="--plan", do=do)
    if not isinstance(content, dict) or not isinstance(content.get("plan"), dict):
        raise StudyError(f"{path.name} contains no plan", where="--plan", do=do)
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
    return f"{text}\n{args.out}: contains exactly the text above"


def _plan(args: argparse.Namespace) -> str:
    from fedfms.data.fingerprint import Fingerprint, merge
    from fedfms.models.nnunet_plan import plan_for

    parts = []
    for path in args.fingerprints:
        try:
            parts.append(Fingerprint.from_dict(read_json(path, StudyError)))
        except DataError as error:
            raise error.at(path.name) from error
    merged = merge(parts)
    height_px, width_px = (merged.side(axis, 0.5) for axis in ("heights", "widths"))
    plan = plan_for(height_px, width_px, merged.images, len(merged.structures))
    text = json.dumps({"plan": plan.to_dict(), "made_of": merged.summary()}, indent=1)
    write(args.out, text + "\n")
    return f"{text}\n{args.out}: {len(plan.strides)} stages at {plan.input_px} px"
