"""What an MR scanner makes of a slice: coil shading, dark bands, limited k-space, Rician noise."""

from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft2, rfft2

from jaxmark.data.phantoms.cine.plane import Plane, smooth_fields

# Where receiver coils lie on the chest, mm from the heart: in front, behind.
_COILS = {
    "short": ((-95.0, -60.0), (-95.0, 50.0), (150.0, 0.0)),
    "long": ((-70.0, -90.0), (50.0, -95.0), (-20.0, 130.0)),
}
_GRAIN_MM, _PATCH_MM = 3.5, 12.0  # SDs of the texture of tissues


@dataclass(frozen=True)
class Settings:
    """How a person's slices are acquired."""

    edge_mm: float  # width of edges: the slice is 8 to 10 mm thick, and walls are oblique
    reach_mm: float  # of a coil
    behind: float  # signal of the coil behind, by those in front
    bands: float  # how many dark bands lie beside the heart within 150 mm
    depth: float  # of them
    # Share of k-space that is acquired along x and y.
    kept: tuple[float, float]
    noise: float  # SD by the signal of blood
    blood: float  # its value in the file


def draw_settings(rng: np.random.Generator, scanner: str) -> Settings:
    """B: coils with less reach, a less even field, thicker slices, fewer lines, more noise."""
    weak = scanner == "B"
    kept = (rng.uniform(0.8, 1.0), rng.uniform(0.6, 0.8) if weak else rng.uniform(0.75, 0.95))
    return Settings(
        edge_mm=rng.uniform(2.2, 3.6) if weak else rng.uniform(1.8, 2.8),
        reach_mm=rng.uniform(75, 105) if weak else rng.uniform(110, 180),
        behind=rng.uniform(0.9, 1.8),
        bands=rng.uniform(0.8, 1.5) if weak else rng.uniform(0.4, 1.05),
        depth=rng.uniform(0.6, 0.9),
        kept=kept if rng.random() < 0.5 else kept[::-1],
        noise=rng.uniform(0.03, 0.06) if weak else rng.uniform(0.012, 0.03),
        blood=rng.uniform(140, 320) if weak else rng.uniform(350, 900),
    )


def acquire(
    rng: np.random.Generator,
    noise: np.random.Generator,
    signal: np.ndarray,
    plane: Plane,
    view: str,
    settings: Settings,
) -> np.ndarray:
    """(X, Y) int16: the magnitude image of signed signals (X, Y), shares of blood's.

    Args:
      rng: of what stays in all frames; `noise`: of what doesn't.
      view: "short" or "long": where the coils lie.
    """
    fine, coarse = smooth_fields(rng, plane.grid, (_GRAIN_MM, _PATCH_MM))
    texture = 1 + np.float32(0.05) * fine + np.float32(0.06) * coarse
    image = signal * texture * _shading(plane, view, settings)
    image *= _bands(rng, plane, settings)
    window = _window(image.shape, settings.kept)

    def limited(values: np.ndarray) -> np.ndarray:
        return irfft2(rfft2(values) * window, s=values.shape)

    grains = noise.standard_normal((2, *image.shape), dtype=np.float32) * settings.noise
    magnitude = np.hypot(limited(image + grains[0]), limited(grains[1]))
    return np.rint(np.clip(magnitude * settings.blood, 0, 32767)).astype(np.int16)


def _shading(plane: Plane, view: str, settings: Settings) -> np.ndarray:
    """Sensitivity of all coils together, 1 at the heart."""

    def received(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        weights = (1.0, 1.0, settings.behind)
        parts = (
            np.float32(w)
            / (1 + ((x - np.float32(a)) ** 2 + (y - np.float32(b)) ** 2) / settings.reach_mm**2)
            for w, (a, b) in zip(weights, _COILS[view], strict=True)
        )
        return sum(parts, np.zeros_like(x))

    zero = np.zeros(1, np.float32)
    return (received(*plane.places) / received(zero, zero)).astype(np.float32)


def _bands(rng: np.random.Generator, plane: Plane, settings: Settings) -> np.ndarray:
    """Signal where the field is uneven: none where a repetition turns the phase by half a turn."""
    x, y = (place / np.float32(150.0) for place in plane.places)
    a, b, c = rng.normal(0, 0.35, 3)
    uneven = np.hypot(x, y) ** 2 + np.float32(a) * x + np.float32(b) * y + np.float32(c) * x * y
    phase = settings.bands * uneven  # in half turns
    away = phase % 2 - 1
    return (1 - settings.depth * np.exp(-((away / 0.12) ** 2))).astype(np.float32)


def _window(shape: tuple[int, ...], kept: tuple[float, float]) -> np.ndarray:
    """(X, Y // 2 + 1): k-space that is acquired, with a soft end against ringing."""
    frequencies = (np.abs(np.fft.fftfreq(shape[0])), np.fft.rfftfreq(shape[1]))
    x, y = (
        np.cos(np.pi / 2 * np.clip((f / (0.5 * share) - 0.7) / 0.3, 0, 1)) ** 2
        for f, share in zip(frequencies, kept, strict=True)
    )
    return (x[:, None] * y[None, :]).astype(np.float32)
