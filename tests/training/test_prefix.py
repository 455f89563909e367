"""The cached prefix: equal to the whole network, for this network only, as private as the images."""

import stat
from pathlib import Path

import pytest
import torch

from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build
from fedfms.training.prefix import PrefixCache
from fedfms.training.site import Site

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
KEYS = ["a" * 64, "b" * 64]


def _built(method: str = "fedmsa", seed: int = 0, attention: str = "auto", **model: object) -> BuiltModel:
    spec = {"backbone": "tiny_vit", "input_px": 32, **model}
    study = Study.from_dict({"name": "t", "method": method, "seed": seed, "model": spec})
    return build(study, SiteSettings(attention=attention))


@pytest.mark.slow
def test_the_cached_path_equals_the_whole_network(tmp_path: Path) -> None:
    model = _built()
    cache = PrefixCache(model, tmp_path)
    with torch.no_grad():
        whole = model.model(IMAGES)
        for _ in range(2):  # computed, then read
            cached = model.model.from_prefix(cache.features(IMAGES, KEYS))
            torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-5)
            one_by_one = torch.cat([model.model.prefix(image[None]) for image in IMAGES])
            assert torch.equal(cached, model.model.from_prefix(one_by_one))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stem for path in files} == set(KEYS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


@pytest.mark.parametrize(
    "other",
    [{"normalise": "sam"}, {"stem": "mobile_sam"}, {"seed": 1}, {"input_px": 64}, {"attention": "plain"}],
    ids=["normalise", "stem", "weights", "size", "path"],
)
def test_another_network_does_not_read_these_features(other: dict[str, object], tmp_path: Path) -> None:
    PrefixCache(_built(), tmp_path).features(IMAGES, KEYS)
    model = _built(**other)
    images = torch.nn.functional.interpolate(IMAGES, model.model.input_px)
    with torch.no_grad():
        expected = torch.cat([model.model.prefix(image[None]) for image in images])
    assert torch.equal(PrefixCache(model, tmp_path).features(images, KEYS), expected)


def test_a_trained_or_cheap_prefix_is_not_cached() -> None:
    assert PrefixCache.applies(_built())
    assert not PrefixCache.applies(_built("fedsam"))
    assert not PrefixCache.applies(_built(backbone="vit_tiny"))


def test_bfloat16_halves_the_files_and_rounds_what_is_computed_as_what_is_read(tmp_path: Path) -> None:
    model = _built(adapter_blocks="last:2")
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        cache = PrefixCache(model, tmp_path / dtype, dtype=dtype)
        computed, read = (cache.features(IMAGES, KEYS) for _ in range(2))
        assert computed.dtype == torch.float32
        assert torch.equal(computed, read)
        sizes[dtype] = sum(path.stat().st_size for path in (tmp_path / dtype).rglob("*.npy"))
        exact = torch.cat([model.model.prefix(image[None]) for image in IMAGES])
        # 8 bits of mantissa: half a unit in the last place
        assert torch.allclose(computed, exact, rtol=2**-8 if dtype == "bfloat16" else 0, atol=0)
    assert 0.5 <= sizes["bfloat16"] / sizes["float32"] < 0.52


def test_the_files_do_not_exceed_their_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = _built(backbone="vit_tiny", input_px=64, adapter_blocks="none")
    images = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    keys = [f"{index:064d}" for index in range(20)]
    for _ in range(2):  # a second process finds the first one's files
        cache = PrefixCache(model, tmp_path, dtype="float32", max_mb=1)
        with torch.no_grad():
            expected = torch.cat([model.model.prefix(image[None]) for image in images])
        assert torch.equal(cache.features(images.repeat(1, 1, 1, 1), keys), expected)
        assert 0 < sum(path.stat().st_size for path in tmp_path.rglob("*.npy")) <= 1_000_000
    large = torch.rand(60, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    cache.features(large, [f"{index:064d}" for index in range(100, 160)])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.npy")) <= 1_000_000
    assert caplog.text.count("has reached its limit (cache_mb)") == 1


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["last:2", "none"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_longer_prefix_trains_in_every_precision_with_and_without_the_cache(
    precision: str, blocks: str, tmp_path: Path
) -> None:
    updates = []
    for cached in (True, False):
        study = Study.from_dict({
            "name": "t",
            "data": {"phantom_images": 6, "cache": cached},
            "model": {"backbone": "tiny_vit", "input_px": 32, "adapter_blocks": blocks, "prompt": "learned"},
            "train": {"batch_size": 2, "rounds": 1, "precision": precision},
        })  # fmt: skip
        site = Site(study, "a", SiteSettings(), tmp_path / str(cached))
        updates.append(site.train_round(0, site.built.shared()).update.tensors)
        assert (tmp_path / str(cached) / "cache").exists() == cached
    assert updates[0].keys() == updates[1].keys()
    for name, tensor in updates[0].items():
        torch.testing.assert_close(tensor, updates[1][name], rtol=1e-3, atol=5e-4)


@pytest.mark.slow
def test_training_gives_the_same_numbers_with_and_without_the_cache(tmp_path: Path) -> None:
    updates = []
    for cached in (True, False):
        study = Study.from_dict({
            "name": "t",
            "data": {"phantom_images": 6, "cache": cached},
            "model": {"backbone": "tiny_vit", "input_px": 32},
            "train": {"batch_size": 2, "rounds": 1},
        })  # fmt: skip
        site = Site(study, "a", SiteSettings(), tmp_path / str(cached))
        updates.append(site.train_round(0, site.built.shared()).update.tensors)
        assert (tmp_path / str(cached) / "cache").exists() == cached
    for name, tensor in updates[0].items():
        torch.testing.assert_close(tensor, updates[1][name], rtol=1e-4, atol=1e-5)
