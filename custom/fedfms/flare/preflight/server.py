"""Checks of the way to the server: port, TLS, clock, and what a round needs of the link."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, timezone

from fedfms.errors import ProvisioningError
from fedfms.flare.kit import SOON, certificate, days_left
from fedfms.flare.preflight.context import Context, Finding, fail, ok, warn
from fedfms.flare.preflight.tls import trip_s

_SPEEDS_MBIT = (10, 100, 1000)
_SKEW_WARN_S, _SKEW_FAIL_S = 10, 300
_SET = "set it by NTP: `timedatectl set-ntp true`, or chrony"


def port(context: Context) -> Finding:
    """A TCP connection to the server that the kit names."""
    host, number, _ = context.target
    try:
        seconds = trip_s(host, number, context.timeout_s)
    except OSError as error:
        why = error.strerror or type(error).__name__
        return fail(f"{host}:{number}: {why}", "is it up? open this port outwards in the firewall")
    return ok(f"{host}:{number}: connected in {1e3 * seconds:.1f} ms")


def tls(context: Context) -> Finding:
    """Mutual TLS with the kit's certificate: whose the server's is, and that it takes ours; not its blocked serials."""
    answer, now = context.answer, datetime.now(timezone.utc)
    if isinstance(answer, ProvisioningError):
        return fail(answer.what, answer.do)
    left = days_left(answer.until, now)
    seen = f"{answer.version}; the server's certificate is the kit's root's, of its name, {left} days left; it takes "
    seen += "this kit's: whether its serial is blocked shows only at registration"
    return ok(seen) if left >= SOON else warn(seen, "tell the lead to renew the server's kit")


def clock(context: Context) -> Finding:
    """This machine's clock against the server's, where it tells its time; else what the system says of it."""
    ahead_s = (certificate(context.kit).not_valid_before_utc - datetime.now(timezone.utc)).total_seconds()
    if ahead_s > 0:
        return fail(f"behind by {ahead_s / 3600:.1f} h at least: the kit's certificate was made later", _SET)
    answer = context.answer
    if isinstance(answer, ProvisioningError):
        return _told_by_system("the server does not answer")
    if answer.skew_s is None:
        return _told_by_system("the server tells no time")
    skew_s = abs(answer.skew_s)
    seen = f"{skew_s:.0f} s from the server's, to {1 + answer.trip_s / 2:.0f} s"
    if skew_s > _SKEW_FAIL_S:
        return fail(seen, f"{_SET}; or the server's is wrong: ask the lead")
    return ok(seen) if skew_s <= _SKEW_WARN_S else warn(seen, _SET)


def _told_by_system(why: str) -> Finding:
    if shutil.which("timedatectl"):
        command = ["timedatectl", "show", "-p", "NTPSynchronized", "--value"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if done.stdout.strip() == "yes":
            return ok(f"{why}; this machine's is set by NTP (timedatectl)")
        if done.stdout.strip() == "no":
            return warn(f"{why}, and this machine's is not set by NTP (timedatectl)", _SET)
    return warn(f"not known: {why}", "compare `date -u` with another machine's; `chronyc tracking`")


def link(context: Context) -> Finding:
    """Minutes that a round's tensors take, at a speed that somebody knows: it cannot be measured without a job."""
    traffic, federation = context.traffic, context.study.federation
    up_mb = 0.0 if context.held_out else traffic.up_mb
    speeds = _SPEEDS_MBIT if context.mbit is None else (context.mbit,)
    minutes = {speed: 8 * (up_mb + traffic.down_mb) / speed / 60 for speed in speeds}
    told = ", ".join(f"{value:.1f} min at {speed:g} Mbit/s" for speed, value in minutes.items())
    seen = f"{traffic.down_mb:,.2f} MB down and {up_mb:,.2f} MB up a round: {told}"
    slowest_s = 60 * max(minutes.values())
    if context.mbit is None:
        # At a tenth of the time for which the others wait, nobody needs to know the speed.
        fast = slowest_s <= federation.straggler_timeout_s / 10
        return ok(seen) if fast else warn(f"{seen}; not measured", "measure the link, and give --mbit")
    if slowest_s > federation.round_timeout_s:
        return fail(seen, "a round ends before: a faster link, federation.compression=int8, or another method")
    return ok(seen) if slowest_s <= federation.straggler_timeout_s else warn(
        seen, "the others may not wait so long: tell the lead (federation.straggler_timeout_s, federation.compression)"
    )  # fmt: skip
