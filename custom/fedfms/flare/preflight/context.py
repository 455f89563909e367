"""What checks look at: a site's kit and, where there is one, a job. Read when first asked for, and once."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedfms.data.site import find_items, split_items
from fedfms.data.source import Item, Source
from fedfms.errors import FedfmsError, ProvisioningError
from fedfms.flare.job import read_study
from fedfms.flare.kit import certificate, common_name
from fedfms.flare.preflight.tls import Answer, ask
from fedfms.methods import METHODS, make_method, resolve_study
from fedfms.reporting.cost.live import estimate
from fedfms.reporting.cost.traffic import Traffic, plan
from fedfms.settings import SiteSettings, load_settings
from fedfms.study import Study

PASS, WARN, FAIL = "pass", "warn", "FAIL"
_FULL = 0.8  # of what is free: what is estimated may be more
_NO_KIT = "name the folder of a site's kit, opened"


@dataclass(frozen=True)
class Finding:
    """What a check saw, and what to do about it."""

    state: str
    seen: str
    do: str = ""


def ok(seen: str) -> Finding:
    """All is as it must be."""
    return Finding(PASS, seen)


def warn(seen: str, do: str) -> Finding:
    """It can go on; somebody should look."""
    return Finding(WARN, seen, do)


def fail(seen: str, do: str) -> Finding:
    """The study would not go well."""
    return Finding(FAIL, seen, do)


def room(seen: str, need: float, free: float, do: str) -> Finding:
    """Of an estimated need in bytes, against what is free."""
    if need > free:
        return fail(seen, do)
    return warn(seen, do) if need > _FULL * free else ok(seen)


@dataclass(frozen=True)
class SiteImages:
    """A site's slices for a study: all that it has, and by part."""

    items: list[Item]
    parts: dict[str, tuple[Item, ...]]
    scored: str
    source: Source


@dataclass(frozen=True)
class Context:
    """A preflight.

    Attributes:
        job: the study's folder; None: the checks that need none.
        full: read every image, not a sample.
        mbit: the link's speed in Mbit/s as somebody knows it; None: not known.
        timeout_s: of a connection.
    """

    kit: Path
    job: Path | None = None
    full: bool = False
    mbit: float | None = None
    timeout_s: float = 10.0

    @cached_property
    def client(self) -> dict[str, Any]:
        """The kit's `fed_client.json`.

        Raises:
            ProvisioningError: it is no site's kit.
        """
        return read_kit(self.kit, "startup/fed_client.json")

    @cached_property
    def site(self) -> str:
        """The site's name, as its certificate has it."""
        return common_name(certificate(self.kit))

    @cached_property
    def target(self) -> tuple[str, int, str]:
        """Host, port and scheme of the server.

        Raises:
            ProvisioningError: the kit names none.
        """
        try:
            service = self.client["servers"][0]["service"]
            host, _, port = str(service["target"]).rpartition(":")
            return host.strip("[]"), int(port), str(service.get("scheme", ""))
        except (KeyError, IndexError, TypeError, ValueError):
            raise ProvisioningError("the kit names no server", do=_NO_KIT) from None

    @cached_property
    def answer(self) -> Answer | ProvisioningError:
        """What the server answers over TLS, or why it does not."""
        try:
            return ask(self.kit / "startup", *self.target, self.timeout_s)
        except ProvisioningError as error:
            return error

    @cached_property
    def settings(self) -> SiteSettings:
        """As the site's client reads them.

        Raises:
            SettingsError: see `load_settings`.
        """
        return load_settings(self.kit)

    @cached_property
    def study(self) -> Study:
        """The job's, as its method takes it.

        Raises:
            StudyError: it is no job of this package.
        """
        assert self.job is not None, "a check that needs a study runs with a job"
        study = read_study(self.job)
        return resolve_study(study, make_method(study.method, study.method_options))

    @property
    def held_out(self) -> bool:
        """Whether the site only scores."""
        return self.site in self.study.held_out

    @cached_property
    def traffic(self) -> Traffic:
        """What the study's sites send and get."""
        return plan(self.study)

    @cached_property
    def images(self) -> list[SiteImages]:
        """Of this site, or of each site whose data are pooled here. Nothing that is read is kept.

        Raises:
            SettingsError, DataError: see `fedfms.data.site.open_site`.
        """
        study = replace(self.study, data=replace(self.study.data, cache=False))
        names: tuple[str, ...] = (self.site,)
        if METHODS[study.method].centralised and not self.held_out:
            study, names = replace(study, held_out=()), study.sites
        found = []
        for name in names:
            items, source = find_items(study, name, self.settings)
            found.append(SiteImages(items, *split_items(study, name, items), source))
        return found

    @cached_property
    def step_bytes(self) -> int:
        """Of a step as this site works it off, estimated."""
        return estimate(self.study, self.settings, training=not self.held_out)

    def slices(self) -> list[Item]:
        """Every slice that the study uses here; none where they cannot be read, which has a row of its own."""
        try:
            return [item for each in self.images for item in each.parts["all"]]
        except FedfmsError:
            return []


def read_kit(kit: Path, name: str) -> dict[str, Any]:
    """A JSON file of the kit.

    Raises:
        ProvisioningError: it is not there, or no JSON object.
    """
    content = read_object(kit / name)
    if content is None:
        raise ProvisioningError(f"{name} is missing, or no JSON", do=_NO_KIT)
    return content


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
