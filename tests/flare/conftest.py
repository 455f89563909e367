"""A minimal NVFLARE context of a site."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext


@pytest.fixture
def context(tmp_path: Path) -> FLContext:
    workspace = SimpleNamespace(get_root_dir=lambda: str(tmp_path), get_run_dir=lambda _: str(tmp_path / "run"))
    context = FLContext()
    context.put(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=True)
    context.get_workspace = lambda: workspace
    context.get_job_id = lambda: "job"
    engine = SimpleNamespace(new_context=lambda: _new_context(engine), streamed=[])
    engine.fire_event = lambda kind, own: engine.streamed.append((kind, own.get_prop(FLContextKey.EVENT_DATA)))
    context.get_engine = lambda: engine
    return context


@contextmanager
def _new_context(engine: SimpleNamespace) -> Iterator[FLContext]:
    context = FLContext()
    context.get_engine = lambda: engine
    yield context
