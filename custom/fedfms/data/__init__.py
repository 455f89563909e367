"""Images and masks of a site: the contract on disk, splits, the embedded phantom, datasets. No data set by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedfms.data.site import SiteData, open_site
    from fedfms.data.source import Item

__all__ = ["Item", "SiteData", "open_site"]


def __getattr__(name: str) -> Any:
    """Import torch and MONAI on first use: a converter, which only writes the contract, does not need them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedfms.data import site

    return getattr(site, name)
