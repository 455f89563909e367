"""Plug-ins: methods, backbones and data sets of other installed packages, through entry points.

A package offers them in its pyproject.toml:

    [project.entry-points."fedfms.methods"]
    fedfoo = "acme_fedfoo:FedFoo"           # a subclass of fedfms.methods.Method, whose `name` is "fedfoo"
    [project.entry-points."fedfms.backbones"]
    foo_vit = "acme_fedfoo:FOO_VIT"         # a fedfms.models.Backbone
    [project.entry-points."fedfms.datasets"]
    foo = "acme_fedfoo.dataset"             # a module as fedfms.preprocessing.registry describes it

`pytest --pyargs fedfms.testing -k fedfoo` runs the conformance tests on it.

A job names a method as text, and can only choose among installed packages. A process that runs jobs calls `permit` with
the distributions that its site allows (`plugins` in the site's settings; none by default) before it looks up a name. On
a person's own command line every installed plug-in can be used.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Generic, TypeVar

from fedfms.errors import FedfmsError
from fedfms.names import is_name

T = TypeVar("T")


class PluginError(FedfmsError):
    """A plug-in is not installed, not allowed, broken, or has a name that is in use."""


@dataclass(frozen=True)
class Origin:
    """The installed distribution that a plug-in comes from."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


_permitted: frozenset[str] | None = None  # None: every installed distribution


def permit(distributions: Collection[str]) -> None:
    """Allow the plug-ins of these distributions, and of no others, in this process from now on."""
    global _permitted
    _permitted = frozenset(map(_normal, distributions))


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


@cache
def _offered(group: str) -> dict[str, list[tuple[metadata.EntryPoint, Origin]]]:
    """The entry points of a group by name; installed metadata are read once per process."""
    found: dict[str, list[tuple[metadata.EntryPoint, Origin]]] = {}
    for point in metadata.entry_points(group=group):
        if point.dist is not None:
            found.setdefault(point.name, []).append((point, Origin(point.dist.name, point.dist.version)))
    return found


class Registry(Mapping[str, T], Generic[T]):
    """Built-in entries by name, and those of plug-ins, which are imported when they are first looked up.

    Args:
        group: of the entry points.
        kind: "method", for messages.
        builtin: the entries of this package, which no plug-in can replace.
        convert: checks a loaded object and makes an entry of it; raises TypeError with a reason.
    """

    def __init__(self, group: str, kind: str, builtin: Mapping[str, T], convert: Callable[[str, Any], T]) -> None:
        self._group, self._kind = group, kind
        self._builtin, self._convert = builtin, convert
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """The entry of this name.

        Raises:
            KeyError: there is none.
            PluginError: its plug-in is not allowed here, or broken.
        """
        if name in self._builtin:
            return self._builtin[name]
        origin = self.origin(name)
        if origin is None:
            raise KeyError(name)
        if _permitted is not None and _normal(origin.distribution) not in _permitted:
            raise PluginError(
                f"{self._kind} {name} comes from package {origin}, which this site does not allow", where="plug-ins",
                do=f"if the site agrees, add `plugins: [{origin.distribution}]` to its fedfms_site.yaml",
            )  # fmt: skip
        if name not in self._loaded:
            self._loaded[name] = self._load(name, origin)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._builtin
        yield from sorted(name for name in _offered(self._group) if name not in self._builtin)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in _offered(self._group)

    def origin(self, name: str) -> Origin | None:
        """Where an entry comes from; None for a built-in one, and for an unknown name.

        Raises:
            PluginError: several packages offer the name.
        """
        offered = [] if name in self._builtin else _offered(self._group).get(name, [])
        if len(offered) > 1:
            packages = " and ".join(str(origin) for _, origin in offered)
            raise PluginError(
                f"{self._kind} {name} comes from {packages}", where="plug-ins", do="uninstall one of them"
            )
        return offered[0][1] if offered else None

    def usable(self) -> dict[str, T]:
        """All entries that can be loaded; `problems` has the others."""
        return {name: self[name] for name in self if self._problem(name) is None}

    def problems(self) -> list[str]:
        """One line for each plug-in that cannot be used."""
        clashing = [
            f"plug-ins: package {origin} offers {self._kind} {name}, which is a built-in name; it is ignored"
            for name, offered in _offered(self._group).items() if name in self._builtin for _, origin in offered
        ]  # fmt: skip
        return clashing + [problem for name in self if (problem := self._problem(name)) is not None]

    def _problem(self, name: str) -> str | None:
        try:
            self[name]
        except PluginError as error:
            return error.line()
        return None

    def _load(self, name: str, origin: Origin) -> T:
        ((point, _),) = _offered(self._group)[name]
        where = f"{self._kind} {name} of package {origin}"
        do = "correct or uninstall the package"
        if not is_name(name):
            raise PluginError("its name is not valid", where=where, do=do)
        try:
            return self._convert(name, point.load())
        except TypeError as error:
            raise PluginError(" ".join(str(error).split()), where=where, do=do) from error
        except Exception as error:  # noqa: BLE001 - importing a foreign module can raise anything
            raise PluginError(f"it cannot be imported ({type(error).__name__})", where=where, do=do) from error


def admit(permitted: Collection[str], required: Mapping[str, str]) -> None:
    """Before a job: `permit` the site's distributions, and check those that the job requires, {distribution: version}.

    Raises:
        PluginError: a required one is missing, or has another version.
    """
    permit(permitted)
    for distribution, version in required.items():
        found = installed_version(distribution)
        if found != version:
            has = "it is not installed here" if found is None else f"here it is {found}"
            raise PluginError(
                f"the job was built with package {distribution} {version}; {has}", where="plug-ins",
                do=f"install {distribution}=={version}, or ask the lead to build the job with another version",
            )  # fmt: skip


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return None
