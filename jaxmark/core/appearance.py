"""Images drawn from label maps on the device, each with a new contrast, scanner and field of view.

A network that never sees the same appearance twice learns shapes only, and so reads scans of any
contrast (SynthSeg, Billot et al., Medical Image Analysis 2023). Intensities are drawn around those
of time-of-flight MRA and CTA, or freely. Then come the effects of flow, coil, scanner, motion and
processing by other programs. Numbers without a source are chosen by eye and anatomy.

Functions draw one case; `jax.vmap` draws a batch. Effects along one axis at a time (blur, ringing,
ghosts, folding) are one small matrix for each axis.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmark.config import Appearance
from jaxmark.core.augmentation import cubic_spline, random_affines
from jaxmark.core.tissues import TISSUES

_MRA, _CTA, _FREE = range(3)
_WAYS = 4
_UPSIDE_DOWN, _BACK_TO_FRONT, _NO_ARTERIES, _NOISE = range(_WAYS)
# Lowest and highest value of each tissue. MRA: the brain is about 100. CTA: HU. Free: any.
_RANGES = {
    "air": ((0, 4), (-1000, -980), (0, 1)),
    "skin": ((40, 200), (10, 90), (0, 1)),
    "fat": ((30, 250), (-120, -70), (0, 1)),
    "muscle": ((50, 100), (45, 75), (0, 1)),
    "bone": ((0, 25), (400, 1500), (0, 1)),
    "marrow": ((15, 180), (150, 700), (0, 1)),
    "csf": ((28, 55), (0, 15), (0, 1)),
    "grey": ((85, 105), (36, 48), (0, 1)),
    "white": ((88, 115), (26, 38), (0, 1)),
    "sinus": ((70, 150), (60, 200), (0, 1)),
    "vein": ((70, 150), (60, 200), (0, 1)),
}
_TABLE = np.array([_RANGES[name] for name in TISSUES], np.float32).transpose(1, 0, 2)
# Arteries: MRA and CTA as above; free, above the brightest of the brain.
_ARTERIES = np.array([(150, 700), (200, 600), (0.2, 1.5)], np.float32)
# The units of noise for MRA, CTA and free.
_UNITS = np.array([100.0, 200.0, 0.6], np.float32)
_VEINS = np.array([name in ("sinus", "vein") for name in TISSUES])
_BRAIN = np.array([name in ("grey", "white") for name in TISSUES])
_IN_SKULL = np.array([name in ("csf", "grey", "white", "sinus", "vein") for name in TISSUES])

# Smooth random fields: smallest and largest distance of their nodes, mm.
_FIELDS = {"fine": (2, 6), "coarse": (15, 30), "flow": (20, 40), "coil": (40, 80)}
# Standard deviation in voxels that makes a tissue's edge as wide as a voxel.
_EDGE = 0.45
# Scaled intensities are cut off here, as in `data.frame`.
_MAX_SCALED = 100.0
# Percentiles that become 0 and 1: the defaults of `config.Data`.
_LOW, _HIGH = 0.5, 99.5
# Longer than any crop, mm.
_ENDLESS = 1e4


class Contrast(NamedTuple):
    """The intensities of tissues in one image; numbers as in `_RANGES`."""

    kind: Array  # () _MRA, _CTA or _FREE
    tissues: Array  # (T,)
    arteries: Array  # ()
    brain: Array  # ()
    unit: Array  # () of noise
    nothing: Array  # () the value that programs write where they remove something
    window: Array  # (2,) values beyond are cut off


class Dice:
    """Random numbers of one image by name; the same name always gives the same number."""

    def __init__(self, key: Array):
        self._key = key

    def key(self, name: str) -> Array:
        """The random key of this name."""
        return jax.random.fold_in(self._key, _NAMES.index(name))

    def uniform(self, name: str, low: float | Array = 0.0, high: float | Array = 1.0) -> Array:
        """() between two values."""
        return low + (high - low) * self.by_tissue(name)[0]

    def by_tissue(self, name: str) -> Array:
        """(T,) between 0 and 1."""
        return self._numbers[_NAMES.index(name)]

    def chance(self, name: str, share: float) -> Array:
        """() bool: true in this share of the images."""
        return self.uniform(name) < share

    @functools.cached_property
    def _numbers(self) -> Array:
        # All at once: programs with fewer draws are compiled sooner.
        key = jax.random.fold_in(self._key, len(_NAMES))
        return jax.random.uniform(key, (len(_NAMES), len(TISSUES)))


_NAMES = (
    *("kind", "tissues", "arteries", "dark", "darkness", "venous", "early", "vein"),
    *("window", "low", "high", "nothing"),
    *("nodes", "fine_mm", "coarse_mm", "flow_mm", "coil_mm", "finely", "coarsely", "bias"),
    *("fade", "thin", "saturated", "plane", "way", "stack", "loss"),
    *("noise", "channels", "voxel_x", "voxel_y", "voxel_z", "ringing", "ring_x", "ring_y"),
    *("ring_z", "sharpened", "sharpness", "motion", "ghost", "ghost_mm", "wrapped", "folded"),
    *("fold_at", "stripped", "strip_edge", "threshold", "level", "vessels", "vessels_edge"),
    *("soft", "view", "thickness", "tilt", "x", "y", "z", "size_x", "size_y", "size_z"),
    *("around", "clip", "clip_at", "gamma", "contrast"),
    *("stranger", "which", "strange", "strange_mm"),
)


def appearance(
    key: Array,
    lumen: Array,
    tissues: Array,
    settings: Appearance,
    spacing_mm: Sequence[float],
    middle_ijk: Array | None = None,
) -> tuple[Array, Array, Array]:
    """A random image of each case, scaled as prepared images are, and its field of view.

    The 0.5th and 99.5th percentile of every second voxel in the field of view become 0 and 1; gamma
    and contrast follow. Voxels outside of it are 0, or the scan's minimum.

    Args:
      lumen: (B, X, Y, Z, 1) share of the voxel that lies in arteries, 0 to 1.
      tissues: (B, X, Y, Z) integers, indices into `TISSUES`.
      middle_ijk: (B, 3) the middle of slabs and boxes; None: the volume's middle.

    Returns:
      Images (B, X, Y, Z, 1) float32, fields of view (B, X, Y, Z) bool, and (B,) bool: the image is
      a stranger (see `config.Appearance`).
    """
    batch, *shape, _ = lumen.shape
    if middle_ijk is None:
        middle_ijk = jnp.tile((jnp.array(shape) - 1) / 2, (batch, 1))
    keys = jax.vmap(lambda case: jax.random.fold_in(key, case))(jnp.arange(batch))
    draw = functools.partial(_draw, settings=settings, spacing_mm=tuple(spacing_mm))
    image, seen, stranger = jax.vmap(draw)(keys, lumen[..., 0], tissues, middle_ijk)
    return image[..., None], seen, stranger


def _draw(
    key: Array,
    lumen: Array,
    tissues: Array,
    middle_ijk: Array,
    settings: Appearance,
    spacing_mm: tuple[float, ...],
) -> tuple[Array, Array, Array]:
    """One case: (X, Y, Z), (X, Y, Z), (3,) -> (X, Y, Z), (X, Y, Z), ()."""
    dice = Dice(key)
    stranger, way = draw_stranger(dice, settings)
    if settings.strangers:
        lumen = jnp.where(way == _NO_ARTERIES, 0, lumen)
    contrast = draw_contrast(dice, settings)
    fields = random_fields(dice, lumen.shape, spacing_mm)
    image = textured(dice, contrast, tissues, fields, settings)
    image = along(image, *(gaussian(n, _EDGE) for n in image.shape))
    kept = artery_contrast(dice, contrast, lumen, fields, settings, spacing_mm)
    signal = contrast.brain + (contrast.arteries - contrast.brain) * kept
    image = image + lumen * (signal - image)
    image = scanned(dice, contrast, image, fields, settings, spacing_mm)
    image = processed(dice, contrast, image, lumen, tissues, settings, spacing_mm)
    seen = field_of_view(dice, image.shape, middle_ijk, settings, spacing_mm)
    image = scaled(dice, image, seen, settings)
    if settings.strangers:
        for number, axis in ((_UPSIDE_DOWN, 2), (_BACK_TO_FRONT, 1)):
            image = jnp.where(way == number, jnp.flip(image, axis), image)
        image = jnp.where(way == _NOISE, rough_noise(dice, image.shape, spacing_mm), image)
    return image, seen, stranger


def draw_stranger(dice: Dice, settings: Appearance) -> tuple[Array, Array]:
    """() bool: the image is a stranger; and () the kind of stranger, -1 for other images."""
    stranger = dice.chance("stranger", settings.strangers)
    way = jnp.floor(_WAYS * dice.uniform("which")).astype(jnp.int32)
    return stranger, jnp.where(stranger, way, -1)


def rough_noise(dice: Dice, shape: Sequence[int], spacing_mm: Sequence[float]) -> Array:
    """(X, Y, Z) noise about 0.3, smoothed with a standard deviation of 0 to 5 mm."""
    width = dice.uniform("strange_mm", 0.0, 5.0)
    blurs = [gaussian(n, width / s) for n, s in zip(shape, spacing_mm, strict=True)]
    noise = along(jax.random.normal(dice.key("strange"), shape), *blurs)
    return jnp.clip(0.3 + 0.2 * noise / jnp.maximum(noise.std(), 1e-6), 0, 1)


def draw_contrast(dice: Dice, settings: Appearance) -> Contrast:
    """Draws the intensity of each tissue."""
    modality = dice.uniform("kind")
    known = settings.mra + settings.cta
    kind = jnp.where(modality < settings.mra, _MRA, jnp.where(modality < known, _CTA, _FREE))
    low, high = jnp.moveaxis(jnp.asarray(_TABLE)[kind], -1, 0)
    values = low + (high - low) * dice.by_tissue("tissues")
    brain = (values * _BRAIN).sum() / _BRAIN.sum()
    low, high = jnp.asarray(_ARTERIES)[kind]
    # More dim arteries than bright ones, since they are harder to find.
    arteries = low + (high - low) * dice.uniform("arteries") ** 1.5
    free = kind == _FREE
    arteries = arteries + jnp.where(free, jnp.where(_BRAIN, values, 0).max(), 0)
    dark = free & dice.chance("dark", settings.dark)
    arteries = jnp.where(dark, dice.uniform("darkness", 0.0, 0.6) * brain, arteries)
    # In CTA the delay decides how much contrast agent veins have.
    late = 60 + (0.9 * arteries - 60) * dice.uniform("vein") ** 2
    veins = jnp.where(kind == _CTA, late, values)
    like_arteries = arteries * dice.uniform("early", 0.85, 1.0)
    veins = jnp.where(dice.chance("venous", settings.venous), like_arteries, veins)
    cut = (kind == _CTA) & dice.chance("window", settings.windowed)
    window = jnp.stack([dice.uniform("low", -200, 20), dice.uniform("high", 500, 1000)])
    # Other programs write 0, or the value of air.
    zero = jnp.where((kind == _CTA) & dice.chance("nothing", 0.5), -1000.0, 0.0)
    return Contrast(
        kind=kind,
        tissues=jnp.where(_VEINS, veins, values),
        arteries=arteries,
        brain=brain,
        unit=jnp.asarray(_UNITS)[kind],
        nothing=zero,
        window=jnp.where(cut, window, jnp.array([-jnp.inf, jnp.inf])),
    )


def textured(
    dice: Dice,
    contrast: Contrast,
    tissues: Array,
    fields: Mapping[str, Array],
    settings: Appearance,
) -> Array:
    """(X, Y, Z): the tissues' values, which vary smoothly within each; the air's do not."""
    index = tissues.astype(jnp.int32)
    values = contrast.tissues
    if not settings.texture:
        return values[index]
    # Each tissue has another share of the fine and of the coarse texture.
    shares = settings.texture * jnp.stack([dice.by_tissue("finely"), dice.by_tissue("coarsely")])
    rough = shares * jnp.abs(values) * (np.array(TISSUES) != "air")
    value, finely, coarsely = jnp.stack([values, *rough])[:, index]
    return value + finely * fields["fine"] + coarsely * fields["coarse"]


def artery_contrast(
    dice: Dice,
    contrast: Contrast,
    lumen: Array,
    fields: Mapping[str, Array],
    settings: Appearance,
    spacing_mm: Sequence[float],
) -> Array:
    """(X, Y, Z) 0 to 1: the share of their contrast that arteries keep.

    In CTA the loss is a fourth of that: blood keeps its contrast agent.
    """
    kept = jnp.ones((), jnp.float32)
    if settings.fade:
        places = jax.nn.sigmoid(2 * fields["flow"])
        kept = kept * (1 - dice.uniform("fade", 0, settings.fade) * places)
    if settings.thin:
        # In a tube of radius r a Gaussian of this width leaves 1 - exp(-r^2 / (2 width^2)).
        width = 1.5
        near = blurred(lumen, width, spacing_mm)
        kept = kept * (1 - dice.uniform("thin", 0, settings.thin) * jnp.exp(-near / 0.12))
    if settings.saturated:
        height = jnp.arange(lumen.shape[2]) * spacing_mm[2]
        plane = dice.uniform("plane", 0.0, 0.8) * height[-1]
        way = dice.uniform("way", 15, 60)
        up = (height - plane) / way
        # One slab that the blood goes through, or slabs one above the other.
        many = dice.chance("stack", 0.3)
        lost = jnp.where(many, up % 1, jnp.clip(up, 0, 1))
        loss = dice.uniform("loss", 0.2, 0.8) * dice.chance("saturated", settings.saturated)
        kept = kept * (1 - loss * lost)
    return 1 - (1 - kept) * jnp.where(contrast.kind == _CTA, 0.25, 1.0)


def scanned(
    dice: Dice,
    contrast: Contrast,
    image: Array,
    fields: Mapping[str, Array],
    settings: Appearance,
    spacing_mm: Sequence[float],
) -> Array:
    """(X, Y, Z): the image after coil, blur, ghosts, sharpening, noise and window."""
    is_cta = contrast.kind == _CTA
    if settings.bias:
        strength = jnp.where(is_cta, 0, dice.uniform("bias", 0, settings.bias))
        image = image * jnp.exp(strength * fields["coil"])
    blurs = resolutions(dice, image.shape, settings, spacing_mm)
    x, y, z = blurs
    copies = jnp.where(is_cta, jnp.eye(len(y)), folds(dice, len(y), settings, spacing_mm[1]))
    image = along(image, x, y @ copies, z)
    if settings.sharpened:
        strength = dice.uniform("sharpness", 0.3, 1.5)
        strength = strength * dice.chance("sharpened", settings.sharpened)
        # On a coarse grid, the same width in voxels.
        smooth = blurred(image, 0.8, [min(s, 1.0) for s in spacing_mm])
        image = image + strength * (image - smooth)
    if settings.noise:
        sigma = dice.uniform("noise", 0, settings.noise) * contrast.unit
        noise = along(jax.random.normal(dice.key("channels"), image.shape), *blurs)
        # The filters leave this share of the noise.
        left = (jnp.sqrt((blur**2).sum(1)) for blur in blurs)
        noise = sigma * noise / functools.reduce(jnp.multiply.outer, left)
        # MRA is the magnitude of two channels. The second channel's noise is the first's, flipped:
        # it costs nothing, and differs at each place.
        second = noise[::-1, ::-1, ::-1]
        noisy = image + noise
        image = jnp.where(contrast.kind == _MRA, jnp.hypot(noisy, second), noisy)
    return jnp.clip(image, *contrast.window)


def resolutions(
    dice: Dice, shape: Sequence[int], settings: Appearance, spacing_mm: Sequence[float]
) -> list[Array]:
    """A matrix (n, n) for each axis: the blur by the scanner's voxels.

    A Gaussian that makes voxels of `spacing_mm` as wide as the scanner's (as in `data.resampling`);
    the identity where the scanner's are finer. With ringing it is a sinc that cuts k-space off at a
    frequency that the grid still shows.
    """
    rings = dice.chance("ringing", settings.ringing)
    matrices = []
    for axis, n, s in zip("xyz", shape, spacing_mm, strict=True):
        limits = settings.slice_mm if axis == "z" else settings.voxel_mm
        ratio = jnp.maximum(dice.uniform(f"voxel_{axis}", *limits) / s, 1.0)
        blur = gaussian(n, 0.5 * jnp.sqrt(ratio**2 - 1))
        if settings.ringing:
            sharp = sinc(n, ratio * dice.uniform(f"ring_{axis}", 1.0, 1.4))
            blur = jnp.where(rings, sharp, blur)
        matrices.append(blur)
    return matrices


def folds(dice: Dice, n: int, settings: Appearance, spacing_mm: float) -> Array:
    """(n, n): adds faint copies from elsewhere along the axis: ghosts and fold-over."""
    step = jnp.arange(n)[:, None] - jnp.arange(n)

    def moved(by: Array) -> Array:
        """Shifts by a number of voxels, also by parts of one."""
        return jnp.maximum(1 - jnp.abs(step - by), 0)

    copies = jnp.eye(n)
    if settings.motion:
        far = dice.uniform("ghost_mm", 4, 25) / spacing_mm
        ghost = dice.uniform("ghost", 0.03, 0.25) * dice.chance("motion", settings.motion)
        copies = copies + ghost * (moved(far) + moved(-far))
    if settings.wrapped:
        # If the field of view is shorter than the head, its ends overlap. The copies are faint,
        # because another part of the head would lie there, not a second circle.
        far = dice.uniform("fold_at", 0.6, 0.9) * n
        folded = dice.uniform("folded", 0.1, 0.5) * dice.chance("wrapped", settings.wrapped)
        copies = copies + folded * (moved(far) + moved(-far))
    return copies


def processed(
    dice: Dice,
    contrast: Contrast,
    image: Array,
    lumen: Array,
    tissues: Array,
    settings: Appearance,
    spacing_mm: Sequence[float],
) -> Array:
    """(X, Y, Z): the image after skull stripping, thresholding or masking by other programs."""
    nothing = contrast.nothing
    if settings.stripped:
        inside = jnp.asarray(_IN_SKULL)[tissues.astype(jnp.int32)] | (lumen > 0.5)
        # Real masks are smooth, and too wide or too narrow.
        edge = dice.uniform("strip_edge", 0.25, 0.7)
        inside = blurred(inside.astype(jnp.float32), 2.0, spacing_mm) > edge
        taken = dice.chance("stripped", settings.stripped) & ~inside
        image = jnp.where(taken, nothing, image)
    if settings.thresholded:
        # Relative to the arteries in this image, which flow and blur have dimmed.
        signal = (lumen * image).sum() / jnp.maximum(lumen.sum(), 1e-6)
        above = (image - contrast.brain) / (signal - contrast.brain)
        low = above < dice.uniform("level", 0.2, 0.7)
        image = jnp.where(dice.chance("threshold", settings.thresholded) & low, nothing, image)
    if settings.vessels_only:
        near = jnp.clip(blurred(lumen, 1.0, spacing_mm) * dice.uniform("vessels_edge", 2, 6), 0, 1)
        # A soft mask, or a hard one.
        near = jnp.where(dice.chance("soft", 0.5), near, jnp.where(near > 0.2, 1.0, 0.0))
        near = jnp.where(dice.chance("vessels", settings.vessels_only), near, 1.0)
        image = nothing + near * (image - nothing)
    return image


def field_of_view(
    dice: Dice,
    shape: Sequence[int],
    middle_ijk: Array,
    settings: Appearance,
    spacing_mm: Sequence[float],
) -> Array:
    """(X, Y, Z) bool: a box about the middle (3,), a slab across z, or all."""
    drawn = dice.uniform("view")
    is_slab, is_box = drawn < settings.slab, drawn >= 1 - settings.box
    box = jnp.stack([dice.uniform(f"size_{a}", 1.0, 1.5) for a in "xyz"])
    box = box * jnp.array(settings.box_mm)
    slab = jnp.stack([_ENDLESS, _ENDLESS, dice.uniform("thickness", *settings.slab_mm)])
    size = jnp.where(is_box, box, jnp.where(is_slab, slab, _ENDLESS))
    shift = jnp.stack([dice.uniform(a, -settings.shift, settings.shift) for a in "xyz"])
    centre = jnp.where(size < _ENDLESS, shift * size, 0)
    turn = random_affines(dice.key("tilt"), 1, degrees=settings.tilt_degrees, scale=0.0)[0]
    # What each axis of the grid adds to the place in the box's axes.
    x, y, z = (
        turn[:, a, None] * ((jnp.arange(n) - middle_ijk[a]) * s)
        for a, (n, s) in enumerate(zip(shape, spacing_mm, strict=True))
    )
    place = x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :]
    return (jnp.abs(place - centre[:, None, None, None]) <= size[:, None, None, None] / 2).all(0)


def scaled(dice: Dice, image: Array, seen: Array, settings: Appearance) -> Array:
    """(X, Y, Z) scaled as prepared images are; see `appearance`.

    If the percentiles are equal, the smallest and largest value replace them. If these are equal
    too (but for rounding), or no voxel is seen, the image is 0.
    """
    thin = (slice(None, None, 2),) * 3
    some = jnp.sort(jnp.where(seen, image, jnp.inf)[thin].reshape(-1))
    count = seen[thin].sum()

    def percentile(q: float | Array) -> Array:
        """As `numpy.percentile` of the seen values."""
        place = jnp.maximum(count - 1, 0) * (q / 100)
        first = jnp.floor(place).astype(jnp.int32)
        low, high = some[first], some[jnp.minimum(first + 1, jnp.maximum(count - 1, 0))]
        return low + (high - low) * (place - first)

    limit = jnp.where(
        dice.chance("clip", settings.clipped),
        percentile(dice.uniform("clip_at", 97, 99.5)),
        jnp.inf,
    )
    image = jnp.minimum(image, limit)
    least, most = percentile(0.0), jnp.minimum(percentile(100.0), limit)
    low, high = percentile(_LOW), jnp.minimum(percentile(_HIGH), limit)
    same = 1e-5 * jnp.maximum(jnp.abs(least), jnp.abs(most))
    flat = high - low <= same
    low, high = jnp.where(flat, least, low), jnp.where(flat, most, high)
    fits = (count > 0) & (high - low > same)
    low, high = jnp.where(fits, low, 0.0), jnp.where(fits, high, 1.0)
    image = (image - low) / (high - low)
    exponent = jnp.exp(dice.uniform("gamma", -settings.gamma, settings.gamma))
    factor = dice.uniform("contrast", 1 - settings.contrast, 1 + settings.contrast)

    def shown(values: Array) -> Array:
        """The values after gamma (for those above 0) and contrast."""
        if settings.gamma:
            values = jnp.where(values > 0, jnp.maximum(values, 1e-6) ** exponent, values)
        return jnp.clip(factor * values, -_MAX_SCALED, _MAX_SCALED)

    around = jnp.where(
        dice.chance("around", settings.minimum_around), (least - low) / (high - low), 0.0
    )
    return jnp.where(fits, jnp.where(seen, shown(image), shown(around)), 0.0)


def random_fields(
    dice: Dice, shape: Sequence[int], spacing_mm: Sequence[float]
) -> dict[str, Array]:
    """(X, Y, Z) for each of `_FIELDS`: cubic B-splines of white nodes, of mean 0 and SD 1."""
    lengths = [(n - 1) * s for n, s in zip(shape, spacing_mm, strict=True)]
    # As many nodes as the smallest distance needs; with a larger one some lie beyond the volume.
    counts = {
        name: [math.ceil(length / least) + 4 for length in lengths]
        for name, (least, _) in _FIELDS.items()
    }
    sizes = [math.prod(count) for count in counts.values()]
    drawn = jax.random.uniform(dice.key("nodes"), (sum(sizes),), minval=-1, maxval=1) * 3**0.5
    parts = jnp.split(drawn, list(itertools.accumulate(sizes))[:-1])
    fields = {}
    for (name, count), part in zip(counts.items(), parts, strict=True):
        apart = dice.uniform(f"{name}_mm", *_FIELDS[name])
        bases = [
            cubic_spline(jnp.arange(n)[:, None] * (s / apart) + 1 - jnp.arange(m))
            for n, s, m in zip(shape, spacing_mm, count, strict=True)
        ]
        # In each direction a cubic B-spline leaves 0.479 of the variance of white nodes.
        fields[name] = along(part.reshape(count), *bases) / 0.479**1.5
    return fields


def gaussian(n: int, width: float | Array) -> Array:
    """(n, n): a Gaussian of this standard deviation in voxels; rows sum to 1."""
    step = jnp.arange(n)[:, None] - jnp.arange(n)
    weights = jnp.exp(-0.5 * (step / jnp.maximum(width, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdims=True)


def sinc(n: int, width: float | Array) -> Array:
    """(n, n): the ideal low-pass of voxels this wide, at least 1; rows sum to 1."""
    step = jnp.arange(n)[:, None] - jnp.arange(n)
    weights = jnp.sinc(step / width)
    return weights / weights.sum(1, keepdims=True)


def blurred(volume: Array, width_mm: float, spacing_mm: Sequence[float]) -> Array:
    """(X, Y, Z) with a Gaussian of this standard deviation along each axis."""
    widths = (width_mm / s for s in spacing_mm)
    return along(volume, *(gaussian(n, w) for n, w in zip(volume.shape, widths, strict=True)))


def along(volume: Array, x: Array, y: Array, z: Array) -> Array:
    """Matrices (X', X), (Y', Y), (Z', Z) along the axes of (X, Y, Z) -> (X', Y', Z')."""
    # Accelerators would otherwise compute float32 products with fewer bits.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    volume = product("xyz,cz->xyc", volume, z)
    volume = product("xyz,by->xbz", volume, y)
    return product("xyz,ax->ayz", volume, x)
