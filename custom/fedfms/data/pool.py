"""Pooled data of several sites: what the centralised counterparts train on."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

from fedfms.data.damaged import Place
from fedfms.data.site import SiteData, open_site
from fedfms.data.source import Item
from fedfms.settings import SiteSettings
from fedfms.study import Study


@dataclass(frozen=True)
class PooledData:
    """Several sites' data one after another; each site is split as in a federated run."""

    members: tuple[SiteData, ...]

    @property
    def parts(self) -> dict[str, tuple[Item, ...]]:
        """Slices by part, of all sites."""
        return {
            part: tuple(item for member in self.members for item in member.parts[part])
            for part in self.members[0].parts
        }

    @property
    def scored_part(self) -> str:
        """The same for all sites."""
        return self.members[0].scored_part

    @property
    def unreadable_images(self) -> int:
        """Number of images that are skipped because they are damaged, over all sites."""
        return sum(member.unreadable_images for member in self.members)

    def dataset(self, part: str, **how: Any) -> Dataset[dict[str, Any]]:
        """See `SiteData.dataset`."""
        return ConcatDataset(
            member.dataset(part, **how) for member in self.members if part == "all" or member.parts[part]
        )


def open_pool(
    study: Study, sites: Sequence[str], settings: SiteSettings, known: Mapping[str, Collection[Place]],
    check_stop: Callable[[], None],
) -> PooledData:  # fmt: skip
    """The data of `sites`, all of which must be on this machine; `known` by site, otherwise as `open_site`.

    Raises:
        SettingsError, DataError: as `open_site`, with the site in `where`.
    """
    alone = replace(study, held_out=())
    return PooledData(
        tuple(open_site(alone, site, settings, known.get(site, ()), check_stop) for site in sorted(sites))
    )


def members_of(data: SiteData | PooledData) -> tuple[SiteData, ...]:
    """The data of each pooled site, or of the one site."""
    return data.members if isinstance(data, PooledData) else (data,)
