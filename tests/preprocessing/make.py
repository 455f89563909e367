"""Raw folders for tests, generated or copied from real data; recipes and conversions as from the command line."""

import argparse
import pickle
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fedfms import cli

CANARY = "ZZCANARYMustermann"


def main(command: list[str]) -> int:
    """`fedfms prepare`."""
    return cli.main(["prepare", *command])


def options(module, *arguments):
    """The recipe of a data set under command line options."""
    parser = argparse.ArgumentParser()
    module.add_options(parser)
    return module.recipe(parser.parse_args(arguments))


def as_sent(thing):
    """`thing` as a worker process receives it."""
    return pickle.loads(pickle.dumps(thing))


def make_raw(folder: Path, n: int = 6) -> Path:
    """`n` PNG pairs of 10 x 14 px with the canary in names and text chunks."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    info = PngInfo()
    info.add_text("PatientName", CANARY)
    for number in range(n):
        mask = np.zeros((10, 14), dtype=np.uint8)
        mask[2:6, 3:9] = 0 if number == 0 else 255
        image = random.integers(0, 256, (10, 14, 3), dtype=np.uint8)
        name = f"{CANARY}{number}"
        Image.fromarray(image).save(folder / "images" / f"{name}.png", pnginfo=info)
        Image.fromarray(mask).save(folder / "labels" / f"{name}_mask.png", pnginfo=info)
    return folder


def copy_sites(source: Path, raw: Path, *sites: str) -> Path:
    """A raw folder with copies of real sites, so that the key file is written there and not into the real data.

    Links are no option, because a link out of the raw folder is a fault.
    """
    for site in sites:
        shutil.copytree(source / site, raw / site, copy_function=shutil.copyfile)
    for path in (raw, *raw.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return raw


def convert_pairs(raw: Path, out: Path, *extra: str) -> int:
    """Run `pairs` on one site in this process; returns the exit code."""
    arguments = ["pairs", "--raw", str(raw), "--out", str(out), "--dataset", "d", "--site", "s", "--workers", "0"]
    return main([*arguments, *extra])
