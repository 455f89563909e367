"""The input of the checks: a site's kit and optionally a job, each part read once when first needed."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasPath, Field
from pydantic.dataclasses import dataclass as typed

from fedfms import plugins
from fedfms.data.site import find_items, split_items
from fedfms.data.source import Item, Source
from fedfms.errors import FedfmsError, ProvisioningError
from fedfms.flare.job import read_study, required_plugins
from fedfms.flare.kit import common_name, load_certificate
from fedfms.flare.nvflare_cli import LENIENT
from fedfms.flare.preflight.tls import ServerAnswer, probe
from fedfms.methods import METHODS, make_method, resolve_study
from fedfms.reporting.cost.step import estimate
from fedfms.reporting.cost.traffic import Traffic, plan_traffic
from fedfms.schema import parse_bytes
from fedfms.settings import SiteSettings, load_settings
from fedfms.study import Study

T = TypeVar("T")
PASS, WARN, FAIL = "pass", "warn", "FAIL"
_SAFE_SHARE = 0.8  # of the free capacity: the real need may exceed the estimate
_OPENED_KIT = "name the folder of a site's opened kit"


@dataclass(frozen=True)
class Finding:
    """The outcome of a check, and what to do about it."""

    state: str
    seen: str
    do: str = ""


ok = partial(Finding, PASS)
warn = partial(Finding, WARN)  # the study can run, but a person should look at this
fail = partial(Finding, FAIL)  # the study would fail


def capacity(seen: str, need: float, free: float, do: str) -> Finding:
    """Compare an estimated need in bytes with the free bytes."""
    if need > free:
        return fail(seen, do)
    return warn(seen, do) if need > _SAFE_SHARE * free else ok(seen)


@typed(frozen=True, config=LENIENT)
class ClientConfig:
    """The server's address and the site's name in NVFLARE's `fed_client.json`."""

    target: str = Field(default="", validation_alias=AliasPath("servers", 0, "service", "target"))
    scheme: str = Field(default="", validation_alias=AliasPath("servers", 0, "service", "scheme"))
    site: str = Field(default="", validation_alias=AliasPath("client", "fqsn"))


@dataclass(frozen=True)
class SiteImages:
    """A site's slices for a study: all, and by split."""

    items: list[Item]
    parts: dict[str, tuple[Item, ...]]
    scored: str
    source: Source


@dataclass(frozen=True)
class Context:
    """The options of a preflight, and its input, each part read when first needed.

    Its properties raise a `FedfmsError` if the kit, the settings or the job are not valid.

    Attributes:
        job: the study's job folder; None: run only the checks that need none.
        full: read every image, not a sample.
        mbit: speed of the link in Mbit/s; None: unknown.
        timeout_s: of a connection.
    """

    kit: Path
    job: Path | None = None
    full: bool = False
    mbit: float | None = None
    timeout_s: float = 10.0

    @cached_property
    def client(self) -> ClientConfig:
        """The kit's `fed_client.json`."""
        return self.read_kit("startup/fed_client.json", ClientConfig)

    @cached_property
    def site(self) -> str:
        """The site's name in its certificate."""
        return common_name(load_certificate(self.kit))

    @cached_property
    def target(self) -> tuple[str, int, str]:
        """Host, port and scheme of the server."""
        try:
            host, _, port = self.client.target.rpartition(":")
            return host.strip("[]"), int(port), self.client.scheme
        except ValueError:
            raise ProvisioningError("the kit names no server", do=_OPENED_KIT) from None

    @cached_property
    def server_answer(self) -> ServerAnswer | ProvisioningError:
        """The server's answer over TLS, or the error."""
        try:
            return probe(self.kit / "startup", *self.target, self.timeout_s)
        except ProvisioningError as error:
            return error

    @cached_property
    def settings(self) -> SiteSettings:
        """The site's settings, as its client reads them."""
        return load_settings(self.kit)

    @cached_property
    def study(self) -> Study:
        """The job's study, resolved by its method."""
        study = read_study(self.job_folder)
        if self.required_plugins:
            plugins.admit(self.settings.plugins, self.required_plugins)
        return resolve_study(study, make_method(study.method, study.method_options))

    @cached_property
    def required_plugins(self) -> dict[str, str]:
        """The packages of plug-ins that the job was built with, {distribution: version}."""
        return required_plugins(self.job_folder)

    @property
    def job_folder(self) -> Path:
        """The job, in checks that need one."""
        assert self.job is not None, "a check that needs a study runs with a job"
        return self.job

    @property
    def held_out(self) -> bool:
        """Whether this is a held-out site, which only scores."""
        return self.site in self.study.held_out

    @cached_property
    def traffic(self) -> Traffic:
        """What the study's sites send and receive."""
        return plan_traffic(self.study)

    @cached_property
    def images(self) -> list[SiteImages]:
        """Images of this site, or of each site whose data are pooled here. Nothing is cached."""
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
        """Estimated memory of a step with this site's settings."""
        return estimate(self.study, self.settings, training=not self.held_out)

    def slices(self) -> list[Item]:
        """All slices that the study uses here; empty if they cannot be read, which another check reports."""
        try:
            return [item for each in self.images for item in each.parts["all"]]
        except FedfmsError:
            return []

    def read_kit(self, name: str, kind: type[T] = dict[str, Any]) -> T:  # type: ignore[assignment]
        """A JSON file of the kit, as `read_config`."""
        return read_config(self.kit / name, kind, where=name, do=_OPENED_KIT)

    def read_job(self, name: str, kind: type[T] = dict[str, Any]) -> T:  # type: ignore[assignment]
        """A JSON file of the job, as `read_config`."""
        return read_config(self.job_folder / name, kind, where=f"the job's {name}", do="name a job's folder")


def read_config(path: Path, kind: type[T], *, where: str, do: str) -> T:
    """A JSON file of a kit or job; errors do not show its content.

    Raises:
        ProvisioningError: it is missing, or not of that form.
    """
    try:
        text = path.read_bytes()
    except OSError:
        raise ProvisioningError("the file is missing", where=where, do=do) from None
    return parse_bytes(kind, text, ProvisioningError, where=where, do=do, machine_written=True)
