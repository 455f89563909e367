"""Meta-device models, and imports that a server and the command line do not need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fedfms.flare.preflight.job import class_paths
from fedfms.models.meta_device import on_meta_device
from fedfms.study import STUDIES

META_MODELS = """
from pathlib import Path
from fedfms.study import STUDIES, load_study
from fedfms.training.build import build_on_meta
for method in ("fedsca", "feddbe", "fedsam"):
    built = build_on_meta(load_study(Path(sys.argv[1]), method=method))
    assert all(tensor.is_meta for tensor in built.model.state_dict().values())
"""
REPO = Path(__file__).parents[2]


def _imported(code: str, names: str, argument: Path = REPO) -> str:
    """Which of `names` a fresh process has imported after `code`."""
    script = f"import sys\n{code}\nprint(*[name for name in {names.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script, str(argument)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_meta_tensors_have_shapes_and_dtypes_but_no_values() -> None:
    with on_meta_device():
        network = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 5), nn.Conv2d(1, 2, 3))
        drawn, filled = torch.randn(2, 3, dtype=torch.float64), torch.zeros(2)
    assert all(tensor.is_meta for tensor in (*network.parameters(), drawn, filled))
    assert (tuple(drawn.shape), drawn.dtype) == ((2, 3), torch.float64)
    assert [tuple(p.shape) for p in network.parameters()] == [(3, 4), (5, 4), (5,), (2, 1, 3, 3), (2,)]


def test_tensors_of_other_devices_have_values() -> None:
    with on_meta_device():
        seeded = torch.Generator("cpu").manual_seed(1)
        real = torch.empty(5, device="cpu").normal_(generator=seeded)
        again = torch.randn(5, device="cpu", generator=torch.Generator("cpu").manual_seed(1))
    assert torch.equal(real, again) and real.abs().sum() > 0


@pytest.mark.slow
def test_a_meta_device_model_does_not_import_the_compiler() -> None:
    assert _imported(META_MODELS, "torch._dynamo", STUDIES / "phantom.yaml") == ""


@pytest.mark.slow
@pytest.mark.parametrize("job", ["fedmsa", "fedsca"])
def test_a_server_does_not_import_monai(job: str) -> None:
    config = json.loads((REPO / "jobs" / job / "app" / "config" / "config_fed_server.json").read_text())
    code = "\n".join(f"import {path.rpartition('.')[0]}" for path in class_paths(config) if path.startswith("fedfms."))
    assert _imported(code, "fedfms.flare.recorder monai matplotlib scipy") == "fedfms.flare.recorder"


def test_the_command_line_does_not_import_torch() -> None:
    assert _imported("import fedfms.cli", "fedfms.cli torch monai nvflare") == "fedfms.cli"
