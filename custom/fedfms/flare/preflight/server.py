"""Checks of the connection to the server: port, TLS, clock, and the time to transfer a round's tensors."""

import shutil
import subprocess
from datetime import datetime, timezone

from fedfms.errors import ProvisioningError
from fedfms.flare.kit import RENEWAL_DAYS, days_left, load_certificate
from fedfms.flare.preflight.context import Context, Finding, fail, ok, warn
from fedfms.flare.preflight.tls import round_trip_s

_SPEEDS_MBIT = (10, 100, 1000)
_OFFSET_WARN_S, _OFFSET_FAIL_S = 10, 300
_SET_CLOCK = "set it by NTP: `timedatectl set-ntp true`, or chrony"


def port(context: Context) -> Finding:
    """A TCP connection to the server that the kit names."""
    host, number, _ = context.target
    try:
        seconds = round_trip_s(host, number, context.timeout_s)
    except OSError as error:
        why = error.strerror or type(error).__name__
        return fail(f"{host}:{number}: {why}", "does the server run? open this outbound port in the firewall")
    return ok(f"{host}:{number}: connected in {1e3 * seconds:.1f} ms")


def tls(context: Context) -> Finding:
    """Mutual TLS: the server's certificate is trusted, and the server accepts this kit's. Revocation is not checked."""
    answer = context.server_answer
    if isinstance(answer, ProvisioningError):
        return fail(answer.what, answer.do)
    left = days_left(answer.expires, datetime.now(timezone.utc))
    seen = f"{answer.tls_version}; the server's certificate is signed by the kit's root, {left} days left; the server "
    seen += "accepts this kit's (it checks for revocation only at registration)"
    return ok(seen) if left >= RENEWAL_DAYS else warn(seen, "ask the lead to renew the server's kit")


def clock(context: Context) -> Finding:
    """This machine's clock against the server's; if the server reports no time, whether NTP sets it."""
    behind_s = (load_certificate(context.kit).not_valid_before_utc - datetime.now(timezone.utc)).total_seconds()
    if behind_s > 0:
        return fail(f"at least {behind_s / 3600:.1f} h behind: the kit's certificate was issued later", _SET_CLOCK)
    answer = context.server_answer
    if isinstance(answer, ProvisioningError):
        return _ntp_status("the server does not answer")
    if answer.clock_offset_s is None:
        return _ntp_status("the server reports no time")
    offset_s = abs(answer.clock_offset_s)
    seen = f"differs by {offset_s:.0f} s from the server's (to within {1 + answer.round_trip_s / 2:.0f} s)"
    if offset_s > _OFFSET_FAIL_S:
        return fail(seen, f"{_SET_CLOCK}; or the server's is wrong: ask the lead")
    return ok(seen) if offset_s <= _OFFSET_WARN_S else warn(seen, _SET_CLOCK)


def _ntp_status(why: str) -> Finding:
    if shutil.which("timedatectl"):
        command = ["timedatectl", "show", "-p", "NTPSynchronized", "--value"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if done.stdout.strip() == "yes":
            return ok(f"{why}; NTP sets this machine's clock (timedatectl)")
        if done.stdout.strip() == "no":
            return warn(f"{why}, and NTP does not set this machine's clock (timedatectl)", _SET_CLOCK)
    return warn(f"unknown: {why}", "compare `date -u` with another machine's; `chronyc tracking`")


def link(context: Context) -> Finding:
    """Minutes to transfer a round's tensors at a given speed, which cannot be measured without a job."""
    traffic, federation = context.traffic, context.study.federation
    up_mb = 0.0 if context.held_out else traffic.up_mb
    speeds = _SPEEDS_MBIT if context.mbit is None else (context.mbit,)
    minutes = {speed: 8 * (up_mb + traffic.down_mb) / speed / 60 for speed in speeds}
    times = ", ".join(f"{value:.1f} min at {speed:g} Mbit/s" for speed, value in minutes.items())
    seen = f"{traffic.down_mb:,.2f} MB down and {up_mb:,.2f} MB up per round: {times}"
    slowest_s = 60 * max(minutes.values())
    if context.mbit is None:
        # Below a tenth of the straggler timeout, the speed does not matter.
        fast = slowest_s <= federation.straggler_timeout_s / 10
        return ok(seen) if fast else warn(f"{seen}; not measured", "measure the link, and give --mbit")
    if slowest_s > federation.round_timeout_s:
        do = "the round would time out: use a faster link, federation.compression=int8, or another method"
        return fail(seen, do)
    if slowest_s > federation.straggler_timeout_s:
        do = "longer than the straggler timeout: ask the lead (federation.straggler_timeout_s, federation.compression)"
        return warn(seen, do)
    return ok(seen)
