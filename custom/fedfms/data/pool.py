"""The data of several sites as if they were one site's: what the centralised yardsticks train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

from fedfms.data.site import SiteData, open_site
from fedfms.data.source import Item
from fedfms.settings import SiteSettings
from fedfms.study import Study


@dataclass(frozen=True)
class PooledData:
    """Several sites' data one after another; every site is split as it would be by itself."""

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
        """As each of the sites has it."""
        return self.members[0].scored_part

    def dataset(
        self, part: str, *, input_px: int, mask_px: int, augment: bool = False, round_: int = 0
    ) -> Dataset[dict[str, Any]]:
        """See `SiteData.dataset`."""
        return ConcatDataset(
            member.dataset(part, input_px=input_px, mask_px=mask_px, augment=augment, round_=round_)
            for member in self.members
            if part == "all" or member.parts[part]
        )


def open_pool(study: Study, sites: Sequence[str], settings: SiteSettings) -> PooledData:
    """The data of `sites`, all of which must lie where this process runs.

    Raises:
        SettingsError, DataError: as `open_site`, with the site in `where`.
    """
    alone = replace(study, held_out=())
    return PooledData(tuple(open_site(alone, site, settings) for site in sorted(sites)))
