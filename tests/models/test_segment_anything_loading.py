"""segment-anything's networks load with any state of torchvision, without touching `segment_anything`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = {"__init__.py": "raise RuntimeError('operator torchvision::nms does not exist')\n"}
PRESENT = {
    "__init__.py": "",
    "ops/__init__.py": "",
    "ops/boxes.py": "batched_nms = box_area = None\n",
    "transforms/__init__.py": "",
    "transforms/functional.py": "resize = to_pil_image = None\n",
}
LOAD = """
import sys
before = {n: id(m) for n, m in sys.modules.items() if n.split(".")[0] in ("segment_anything", "torchvision")}
from fedfms.models import segment_anything as ours
after = {n: id(m) for n, m in sys.modules.items() if n.split(".")[0] in ("segment_anything", "torchvision")}
assert before == after, sorted(after)
assert ours.load_modeling() is ours.load_modeling()
assert ours.MaskDecoder.__module__.startswith(ours.PRIVATE_NAME)
"""
HALF = """
try:
    import segment_anything
except Exception:
    pass
else:
    raise AssertionError("it should have failed")
import sys, types
if {stub}:
    sys.modules["segment_anything"] = types.ModuleType("segment_anything")
    sys.modules["segment_anything"].__spec__ = None
"""
THEIRS = """
import segment_anything
assert segment_anything.modeling.MaskDecoder is not ours.MaskDecoder
import pickle
assert pickle.loads(pickle.dumps(ours.MaskDecoder)) is ours.MaskDecoder
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "before", "after"),
    [
        pytest.param(None, "", "", id="absent"),
        pytest.param(PRESENT, "", THEIRS, id="present"),
        pytest.param(BROKEN, "", "", id="broken"),
        pytest.param(BROKEN, HALF.format(stub=False), "", id="half-imported"),
        pytest.param(BROKEN, HALF.format(stub=True), "", id="stub"),
    ],
)
def test_loads_in_a_fresh_process(tmp_path: Path, files: dict[str, str] | None, before: str, after: str) -> None:
    for name, text in (files or {}).items():
        file = tmp_path / "torchvision" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    inherited = [p for p in sys.path if p]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *inherited])}
    command = [sys.executable, "-c", before + LOAD + after]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
