"""The registry of methods. A new method is a file with a `Method` subclass, and a line here."""

import inspect
from collections.abc import Mapping
from typing import Any

from fedfms.errors import StudyError
from fedfms.methods.base import (
    Layout,
    LocalData,
    LocalInit,
    Method,
    Partition,
    ServerState,
    SiteContext,
    Tensors,
    Update,
)
from fedfms.methods.centralised import Msa, Sam, UNet
from fedfms.methods.fedala import FedALA
from fedfms.methods.feddbe import FedDBE
from fedfms.methods.fedheal import FedHEAL
from fedfms.methods.fedmsa import FedMSA
from fedfms.methods.fednnunet import FedNNUNet
from fedfms.methods.fedprox import FedProx
from fedfms.methods.fedra import FedRA
from fedfms.methods.fedsa import FedSA
from fedfms.methods.fedsam import FedSAM
from fedfms.methods.fedsca import FedSCA
from fedfms.methods.fedunet import FedUNet
from fedfms.methods.lat import LAT
from fedfms.methods.local import Local
from fedfms.methods.resolve import resolve_study
from fedfms.methods.sgca import SGCA
from fedfms.models import BACKBONES
from fedfms.plugins import Origin, Registry
from fedfms.schema import did_you_mean
from fedfms.study import Study

POOL = "pool"  # the one training site of a centralised method
_ALL: tuple[type[Method], ...] = (
    FedMSA,
    FedSAM,
    FedProx,
    FedSCA,
    SGCA,
    LAT,
    FedSA,
    FedRA,
    FedHEAL,
    FedALA,
    FedDBE,
    FedUNet,
    FedNNUNet,
    Local,
    Msa,
    Sam,
    UNet,
)


def _checked(name: str, found: Any) -> type[Method]:
    """A plug-in's method."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise TypeError("it is not a subclass of fedfms.methods.Method")
    if getattr(found, "name", None) != name or not isinstance(getattr(found, "paper", None), str):
        raise TypeError(f"its attribute `name` is not {name!r}, or it has no `paper`")
    return found


METHODS = Registry("fedfms.methods", "method", {method.name: method for method in _ALL}, _checked)


def make_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method `name` with its options.

    Raises:
        StudyError: there is no such method, or it has no such option or value.
    """
    if name not in METHODS:
        raise StudyError(f"unknown method {name!r}", where="study", do=f"one of {sorted(METHODS)}")
    known = method_options(name)
    if unknown := sorted(set(options) - known.keys()):
        raise StudyError(f"unknown option {unknown[0]!r}", where=f"method {name}", do=did_you_mean(unknown[0], known))
    return METHODS[name](**options)


def method_options(name: str) -> dict[str, Any]:
    """The options of a registered method, each with its default."""
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(METHODS[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def centralised_counterpart(method: Method) -> str | None:
    """The centralised method that trains on pooled data what `method` trains in a federation.

    What a method adds to the model (FedDBE's shift) is its own and does not count. None where there is no such method,
    and for a centralised one.
    """
    if method.centralised:
        return None
    for other in _ALL:
        same = (other.family, other.adapters) == (method.family, method.adapters)
        if other.centralised and same and other.trained_roles <= method.trained_roles:
            return other.name
    return None


def training_sites(study: Study) -> tuple[str, ...]:
    """The sites that train in a study's run: those that it names; empty where any site may take part."""
    return (POOL,) if study.method in METHODS and METHODS[study.method].centralised else study.sites


def selects_best_model(study: Study) -> bool:
    """Whether a run retains the best of its global models by validation Dice.

    Not in the personal protocol, which scores test images only; nor where a site's private tensors belong to the
    model: they are those of the last round.
    """
    return study.data.protocol != "personal" and not METHODS[study.method].personal


def plugin_origins(study: Study) -> list[Origin]:
    """The packages of the study's method and backbone, where these are plug-ins."""
    origins = (METHODS.origin(study.method), BACKBONES.origin(study.model.backbone))
    return [origin for origin in dict.fromkeys(origins) if origin is not None]


def required_updates(study: Study) -> int:
    """Updates that a round needs."""
    return 1 if training_sites(study) == (POOL,) else study.min_sites


__all__ = [
    "METHODS", "POOL", "Layout", "LocalData", "LocalInit", "Method", "Partition", "ServerState", "SiteContext",
    "Tensors", "Update", "centralised_counterpart", "make_method", "method_options", "plugin_origins",
    "required_updates", "resolve_study", "selects_best_model", "training_sites",
]  # fmt: skip
