"""A component that a test installs at a site: training on the marked data raises errors that contain the marker."""

import functools
from typing import Any

from nvflare.apis.filter import Filter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedfms.training.site import Site
from tests.preprocessing.make import CANARY

from .processes import MARKED


class Raises(Filter):
    """A filter that passes everything; as a filter, it is loaded into the process of a job."""

    def __init__(self) -> None:
        super().__init__()
        original = Site.train_round

        @functools.wraps(original)
        def train_round(site: Site, round_: int, *args: Any, **kwargs: Any) -> Any:
            if site.study.data.dataset != MARKED:
                return original(site, round_, *args, **kwargs)
            if round_ == 0:
                raise RuntimeError(f"the name of the patient is {CANARY}")
            raise FileNotFoundError(2, "No such file or directory", f"/data/{CANARY}/{CANARY}.nii.gz")

        Site.train_round = train_round  # type: ignore[method-assign]

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        return shareable
