"""The embedded phantom: a data set computed from (seed, site), for the demo and the tests.

It has nested regions, one for each label value. Two appearances: "fundus" (RGB, a bright disc with a brighter cup,
vessels, a textured background) and "mri" (grey, a body, an organ with a bright core). Sites differ visibly in contrast,
brightness, colour cast, noise, blur and size of the structures. Distractor blobs look like the structures, so a mere
threshold does not segment well. Under the shift "strong" some sites' devices show the structures dark instead of bright
and permute the colours, so what one site learns misleads another.

Computed in float64, except the noise: processors differ in the last digits of an exponential, and with float32 that
would round some pixels to other grey levels and change their hashes, on which splits depend.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedfms.rng import rng

Array = NDArray[np.float64]
SLICES_PER_PATIENT = 2
EMPTY_SHARE = 0.05
_EDGE = 0.012  # softness of an outline, as a share of the image's side
_CORE = 0.55  # softness of an inner outline, as a share of the outer radius


@dataclass(frozen=True)
class Phantom:
    """Images (n, H, W, 3) uint8; label values (n, H, W) uint8; the patient of each image."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    patients: tuple[str, ...]


@dataclass(frozen=True)
class _Look:
    """Appearance of a site. Lengths are shares of the image's side."""

    contrast: float
    brightness: float
    gamma: float
    noise: float
    blur: float
    scale: float
    cast: Array  # of colours, (3,)
    negative: bool = False  # inverts brightness, as between two MRI sequences
    colours: tuple[int, ...] = (0, 1, 2)  # the channel of the scene in each channel of the image


def make_phantom(
    seed: int, site: str, *, n: int = 40, size_px: int = 128, values: Sequence[int] = (1, 2),
    kind: Literal["fundus", "mri"] | None = None, shift: Literal["look", "strong"] = "look",
) -> Phantom:  # fmt: skip
    """`n` images of `size_px` for a site; the same for the same arguments, on any machine.

    Args:
        values: label values of the nested regions, from the outermost in; each but the last is a rim.
        kind: None: "fundus" for two values, otherwise "mri", so all sites of a study have the same.
    """
    look = _look(seed, site)
    if shift == "strong":
        look = _strong_shift(look, seed, site)
    random = rng(seed, site, purpose="phantom-images")
    fundus = (kind or ("fundus" if len(values) == 2 else "mri")) == "fundus"
    full = _full(random, n)
    geometry = _Geometry(random, n, size_px, len(values), look.scale, fundus)
    paint = _fundus if fundus else _mri
    images = _acquire(random, paint(random, geometry, full), look, size_px)
    labels = np.zeros((n, size_px, size_px), np.uint8)
    for value, distance in zip(values, geometry.regions, strict=False):  # the core of a single region has no label
        labels[(distance < 1) & full[:, None, None]] = value
    patients = tuple(f"phantom-{i // SLICES_PER_PATIENT:04d}" for i in range(n))
    return Phantom(images, labels, patients)


def _look(seed: int, site: str) -> _Look:
    random = rng(seed, site, purpose="phantom-site")
    return _Look(
        contrast=random.uniform(0.7, 1.2),
        brightness=random.uniform(-0.1, 0.1),
        gamma=random.uniform(0.75, 1.3),
        noise=random.uniform(0.01, 0.05),
        blur=random.uniform(0.002, 0.012),
        scale=random.uniform(0.85, 1.25),
        cast=random.uniform(0.86, 1.14, 3),
    )


def _strong_shift(look: _Look, seed: int, site: str) -> _Look:
    """The same device with its own polarity and order of colours."""
    random = rng(seed, site, purpose="phantom-shift")
    negative, colours = bool(random.random() < 0.5), tuple(random.permutation(3).tolist())
    return replace(look, negative=negative, colours=colours)


def _full(random: np.random.Generator, n: int) -> NDArray[np.bool_]:
    """Which images (n,) show the structures; a few do not."""
    full = np.ones(n, dtype=np.bool_)
    full[random.permutation(n)[: round(EMPTY_SHARE * n)]] = False
    return full


class _Geometry:
    """Elliptic distances (n, H, W), below 1 inside, of the nested `regions` and of `body`; `x`, `y` (1, H, W) in -1..1.

    The outermost region has `radius` (n,); all within it are concentric.
    """

    def __init__(
        self, random: np.random.Generator, n: int, size_px: int, count: int, scale: float, fundus: bool
    ) -> None:
        axis = (np.arange(size_px) + 0.5) / size_px * 2 - 1
        self.x, self.y = axis[None, None, :], axis[None, :, None]
        spread = 0.32 if fundus else 0.24
        centre = _by_patient(random, n, -spread, spread, jitter=0.05, columns=2)
        radius = _by_patient(random, n, 0.24, 0.36, jitter=0.02)[:, 0] * scale
        shape = _by_patient(random, n, 0.82, 1.2, jitter=0.03)[:, 0]
        ratio = _by_patient(random, n, 0.42, 0.68, jitter=0.03)[:, 0]
        shift = random.uniform(-0.12, 0.12, (n, 2)) * radius[:, None]
        self.angle = random.uniform(0, np.pi, n)
        self.centre, self.radius = centre, radius
        self.regions = [self.ellipse(centre, radius, shape, self.angle)]
        inner = max(count - 1, 1)  # a single region has an unlabelled core
        for index in range(inner, 0, -1):
            within = radius * ratio * (index / inner)
            self.regions.append(self.ellipse(centre + shift, within, shape, self.angle))
        middle, size = random.uniform(-0.06, 0.06, (n, 2)), random.uniform(0.8, 0.92, n)
        self.body = self.ellipse(middle, size, random.uniform(0.85, 1.15, n), self.angle)

    def ellipse(self, centre: Array, radius: Array, shape: Array, angle: Array) -> Array:
        """Elliptic distance (n, H, W) for centres (n, 2) and radii, axis ratios and angles (n,)."""
        dx = self.x - _column(centre[:, 0])
        dy = self.y - _column(centre[:, 1])
        cos, sin = _column(np.cos(angle)), _column(np.sin(angle))
        u = (dx * cos + dy * sin) / _column(radius * np.sqrt(shape))
        v = (dy * cos - dx * sin) / _column(radius / np.sqrt(shape))
        distance: Array = np.sqrt(u * u + v * v)
        return distance


def _column(values: NDArray[np.floating]) -> Array:
    return np.asarray(values, dtype=np.float64)[:, None, None]


def _by_patient(
    random: np.random.Generator, n: int, low: float, high: float, *, jitter: float, columns: int = 1
) -> NDArray[np.float64]:
    """Values (n, columns) that the images of a patient share, up to some jitter."""
    patients = -(-n // SLICES_PER_PATIENT)
    own = random.uniform(low, high, (patients, columns)).repeat(SLICES_PER_PATIENT, axis=0)[:n]
    return np.asarray(own + random.uniform(-jitter, jitter, (n, columns)))


def _inside(distance: Array, radius: NDArray[np.floating]) -> Array:
    """Soft indicator (n, H, W) of an ellipse of the given radius (n,)."""
    steep = np.clip((1 - distance) * _column(radius) / (2 * _EDGE), -30, 30)
    soft: Array = 1 / (1 + np.exp(-steep))
    return soft


def _texture(random: np.random.Generator, n: int, size_px: int, cells: int) -> Array:
    """Smooth noise (n, H, W), about -1..1, that varies over `cells` cells a side."""
    grid = random.standard_normal((n, cells + 1, cells + 1))
    position = np.linspace(0, cells, size_px)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells + 1)[None]))
    smooth: Array = 0.5 * np.einsum("ia,nab,jb->nij", weights, grid, weights, optimize=True)
    return smooth


def _blobs(random: np.random.Generator, geometry: _Geometry, count: int) -> Array:
    """Soft indicator (n, H, W) of small blobs around the structures."""
    n = len(geometry.radius)
    total = np.zeros_like(geometry.regions[0])
    for _ in range(count):
        turn = random.uniform(0, 2 * np.pi, n)
        away = geometry.radius * random.uniform(1.7, 2.4, n)
        centre = geometry.centre + np.stack([np.cos(turn), np.sin(turn)], axis=1) * away[:, None]
        radius = random.uniform(0.05, 0.13, n)
        blob = _inside(geometry.ellipse(centre, radius, random.uniform(0.6, 1.6, n), turn), radius)
        total = np.maximum(total, blob * _column(random.uniform(0.4, 1.0, n)))
    return total


def _vessels(random: np.random.Generator, geometry: _Geometry, count: int = 7) -> Array:
    """Dark curves (n, H, W) in 0..1 that leave the centre of the structures."""
    n = len(geometry.radius)
    dx = geometry.x - _column(geometry.centre[:, 0])
    dy = geometry.y - _column(geometry.centre[:, 1])
    far: Array = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx)
    total = np.zeros_like(far)
    for index in range(count):
        start = _column(random.uniform(-0.4, 0.4, n) + 2 * np.pi * index / count)
        bend = _column(random.uniform(-0.9, 0.9, n))
        width = _column(random.uniform(0.012, 0.028, n))
        across = np.sin((angle - start - bend * far) / 2) * 2 * far / width
        total = np.maximum(total, np.exp(-(across**2)))
    return total


def _fundus(random: np.random.Generator, geometry: _Geometry, full: NDArray[np.bool_]) -> Array:
    """Scenes (n, H, W, 3) in 0..1."""
    n, size_px = geometry.regions[0].shape[:2]
    light: Array = 1 + 0.16 * _texture(random, n, size_px, 4) + 0.1 * _texture(random, n, size_px, 16)
    light = light * (1 - 0.25 * (geometry.x**2 + geometry.y**2))
    scene: Array = np.asarray([0.52, 0.27, 0.13]) * light[..., None]
    scene = _over(scene, _blobs(random, geometry, 3) * 0.8, (0.8, 0.6, 0.34))
    scene = _paint_regions(scene, geometry, full, ((0.8, 0.56, 0.3), (0.92, 0.82, 0.58)))
    return _over(scene, _vessels(random, geometry) * 0.6, (0.34, 0.1, 0.06))


def _mri(random: np.random.Generator, geometry: _Geometry, full: NDArray[np.bool_]) -> Array:
    """Scenes (n, H, W, 1) in 0..1."""
    n, size_px = geometry.regions[0].shape[:2]
    body: Array = _inside(geometry.body, np.ones(n))
    tissue = body * (0.3 + 0.07 * _texture(random, n, size_px, 12))
    scene: Array = tissue[..., None] + 0.05
    scene = _over(scene, _blobs(random, geometry, 4) * body * 0.85, (0.68,))
    scene = _paint_regions(scene, geometry, full, ((0.56,), (0.8,)))
    bias: Array = 1 + 0.22 * _texture(random, n, size_px, 2)
    return scene * bias[..., None]


def _paint_regions(
    scene: Array, geometry: _Geometry, full: NDArray[np.bool_], colours: tuple[tuple[float, ...], tuple[float, ...]]
) -> Array:
    """The scene with the nested regions of the images (n,) that are `full`, in alternating colours."""
    present = _column(full.astype(np.float64))
    for index, distance in enumerate(geometry.regions):
        cover = _inside(distance, geometry.radius * (_CORE if index else 1)) * present
        scene = _over(scene, cover * 0.9, colours[index % 2])
    return scene


def _over(scene: Array, cover: Array, colour: tuple[float, ...]) -> Array:
    """`scene` (n, H, W, C) blended with a colour by the opacity `cover` (n, H, W)."""
    laid: Array = scene + cover[..., None] * (np.asarray(colour) - scene)
    return laid


def _acquire(random: np.random.Generator, scene: Array, look: _Look, size_px: int) -> NDArray[np.uint8]:
    """Scenes (n, H, W, 1 or 3) as the site's device records them: (n, H, W, 3) uint8."""
    seen = _blur(scene, look.blur * size_px)
    seen = np.clip(seen, 0, 1) ** look.gamma
    seen = (seen - 0.4) * look.contrast + 0.4 + look.brightness
    if seen.shape[-1] == 3:
        seen = seen[..., look.colours] * look.cast
    if look.negative:
        seen = 1 - seen
    noise = random.standard_normal(seen.shape, dtype=np.float32)
    recorded = np.clip((seen + look.noise * noise) * 255, 0, 255).round().astype(np.uint8)
    return recorded if recorded.shape[-1] == 3 else recorded.repeat(3, axis=-1)


def _blur(scene: Array, sigma_px: float) -> Array:
    """Gaussian blur along H and W."""
    reach = max(1, int(3 * sigma_px + 0.5))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma_px, 1e-3)) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (reach, reach)
        wide, length = np.pad(scene, pad, mode="edge"), scene.shape[axis]
        blurred = np.zeros_like(scene)
        for start, tap in enumerate(taps):
            window = wide[:, start : start + length] if axis == 1 else wide[:, :, start : start + length]
            blurred += tap * window
        scene = blurred
    return scene
