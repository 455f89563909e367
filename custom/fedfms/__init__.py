"""fedfms: hospitals train the Segment Anything Model together, on NVIDIA FLARE; every image stays where it is."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedfms.api import (
        RunResult,
        SiteSettings,
        Study,
        build_job,
        export_model,
        load_settings,
        load_study,
        make_kits,
        predict,
        prepare,
        recipe,
        run,
    )

__version__ = "0.1.0"
__all__ = [
    "RunResult", "SiteSettings", "Study", "__version__", "build_job", "export_model", "load_settings", "load_study",
    "make_kits", "predict", "prepare", "recipe", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the Python interface (`fedfms.api`) when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedfms import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
