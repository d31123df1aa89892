"""How well intensities alone bring phantoms together: correlation and mutual information.

python -m experiments.phantoms.registration --cases=20

Heads are turned at random about the middle of the field of view and moved by up to 40 mm along each
axis; the scanner's grid is oblique (up to 30 degrees) and up to 5 mm off the head's middle, so that
other tissue is in view than in the template. Each is registered to one template person; then masks
of vessels, and scans of different modalities, of one person to each other.

The template's landmarks are carried over to the scan. The template is another person, so the rigid
fit of both people's landmarks leaves an error too (`best`). `error` is how far, on average over the
landmarks, the registration carries them from where that fit does. Success is an error below 5 mm
and a rotation within 10 degrees of the fit's.
"""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from absl import app, flags
from tqdm import tqdm

from jaxmark.core.geometry import (
    apply_affine,
    compose_affine,
    fit_rigid,
    rotation_angle_degrees,
    rotation_from_quaternion,
)
from jaxmark.data.mutual_information import register_mutual_information
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, PhantomCase, make_case, place_grid
from jaxmark.data.registration import Registration, register
from jaxmark.data.resampling import resample
from jaxmark.data.scans import Scan

_CASES = flags.DEFINE_integer("cases", 20, "Scans of each modality and range of angles.")
_SEED = flags.DEFINE_integer("seed", 0, "Of people and motions.")
_KINDS = flags.DEFINE_multi_enum(
    "kinds", ["rigid"], ["rigid", "similarity", "affine"], "Maps; may be given several times."
)
_SIZE = flags.DEFINE_enum("size", "small", ["small", "paper"], "Of scans: see SIZES.")

SIZES = {
    "small": CirclePhantom(spacing_mm=(1.6, 1.6, 2.0), shape=(64, 56, 48)),
    "paper": CirclePhantom(),
}
# Heads are turned by up to so many degrees: as headers roughly agree, and any rotation.
_ANGLES = (30.0, 180.0)
_OBLIQUE_DEGREES, _SHIFT_MM, _OFF_CENTRE_MM = 30.0, 40.0, 5.0
_SUCCESS_MM, _SUCCESS_DEGREES = 5.0, 10.0

_METRICS: dict[str, Callable[..., Registration]] = {
    "correlation": register,
    "mutual information": register_mutual_information,
}


class Image(NamedTuple):
    """A scan, or a mask as one, and its landmarks (19, 3) in LPS mm."""

    scan: Scan
    landmarks_mm: np.ndarray


class Outcome(NamedTuple):
    """Of one registration; see the module's docstring."""

    turned_degrees: float
    error_mm: float
    carried_mm: float
    best_mm: float
    quality: float
    margin: float
    cpu_s: float


def main(_: list[str]) -> None:
    """Register, and print the table in Markdown."""
    outcomes = defaultdict(list)
    settings = dataclasses.replace(SIZES[_SIZE.value], seed=_SEED.value)
    mra = dataclasses.replace(settings, modality="MRA")
    cta = dataclasses.replace(settings, modality="CTA")
    templates = {"MRA": as_image(make_case(mra, 0)), "CTA": as_image(make_case(cta, 0))}
    for degrees in _ANGLES:
        for number in tqdm(range(1, _CASES.value + 1), desc=f"turned by up to {degrees:g} degrees"):
            rng = np.random.default_rng([_SEED.value, number, int(degrees)])
            for row, metric, kind, fixed, moving in trials(
                mra, cta, templates, number, degrees, rng
            ):
                key = (row, metric, kind, degrees)
                outcomes[key].append(measure(fixed, moving, metric, kind))
    print(
        "| template <- scan | metric | kind | turned by up to | success | error, median / max (mm) "
        "| carried over (mm) | best (mm) | quality | margin | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (row, metric, kind, degrees), results in sorted(outcomes.items()):
        print(f"| {row} | {metric} | {kind} | {degrees:g} deg | {summary(results)} |")


def trials(
    mra: CirclePhantom,
    cta: CirclePhantom,
    templates: dict[str, Image],
    number: int,
    degrees: float,
    rng: np.random.Generator,
) -> Iterator[tuple[str, str, str, Image, Image]]:
    """Row of the table, metric, kind, fixed and moving image of all that is done with a person."""
    people = {"MRA": wide_case(mra, number), "CTA": wide_case(cta, number)}
    moved = {m: move(as_image(person), mra, rng, degrees) for m, person in people.items()}
    for kind in _KINDS.value:
        for modality, template in templates.items():
            for metric in _METRICS:
                row = f"{modality} <- {modality}"
                yield row, metric, kind, template, moved[modality]
        yield "CTA <- MRA", "mutual information", kind, templates["CTA"], moved["MRA"]
    # One person in both modalities: the motion itself is the best fit.
    own = make_case(cta, number)
    yield "CTA <- MRA, one person", "mutual information", "rigid", as_image(own), moved["MRA"]
    mask = binary(move(as_mask(people["MRA"]), mra, rng, degrees))
    yield "vessel masks, one person", "correlation", "rigid", as_mask(own), mask


def as_image(case: PhantomCase) -> Image:
    """Its scan."""
    return Image(Scan(case.voxels.astype(np.float32), case.ijk_to_lps), case.anatomy.landmarks_mm)


def as_mask(case: PhantomCase) -> Image:
    """Its vessels, 0 or 1."""
    voxels = (case.lumen.segment > 0).astype(np.float32)
    return Image(Scan(voxels, case.ijk_to_lps), case.anatomy.landmarks_mm)


def binary(mask: Image) -> Image:
    """A mask again, after interpolation."""
    voxels = (mask.scan.voxels > 0.5).astype(np.float32)
    return Image(Scan(voxels, mask.scan.ijk_to_lps), mask.landmarks_mm)


def wide_case(settings: CirclePhantom, number: int) -> PhantomCase:
    """With half as much again around the field of view: what a turned one looks at."""
    x, y, z = (3 * n // 2 for n in settings.shape)
    return make_case(dataclasses.replace(settings, shape=(x, y, z)), number)


def move(image: Image, settings: CirclePhantom, rng: np.random.Generator, degrees: float) -> Image:
    """The person lies elsewhere, and is scanned on an oblique grid."""
    middle_ijk = (np.array(settings.shape) - 1) / 2
    middle_mm = apply_affine(place_grid(settings).ijk_to_lps, middle_ijk)
    place_mm = middle_mm + rng.uniform(-_SHIFT_MM, _SHIFT_MM, 3)
    turn = draw_rotation(rng, degrees)
    motion = compose_affine(turn, place_mm - turn @ middle_mm)

    axes = draw_rotation(rng, _OBLIQUE_DEGREES) @ np.diag(settings.spacing_mm)
    seen_mm = place_mm + rng.uniform(-_OFF_CENTRE_MM, _OFF_CENTRE_MM, 3)
    ijk_to_lps = compose_affine(axes, seen_mm - axes @ middle_ijk)
    voxels = resample(image.scan, settings.shape, np.linalg.inv(motion) @ ijk_to_lps)
    return Image(Scan(voxels, ijk_to_lps), apply_affine(motion, image.landmarks_mm))


def draw_rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """(3, 3): any rotation if `degrees` is 180, else one by a uniform angle up to it."""
    if degrees >= 180:
        return rotation_from_quaternion(rng.standard_normal(4))
    axis, half = rng.standard_normal(3), np.radians(rng.uniform(0, degrees)) / 2
    return rotation_from_quaternion(
        np.array([np.cos(half), *(np.sin(half) * axis / np.linalg.norm(axis))])
    )


def measure(fixed: Image, moving: Image, metric: str, kind: str) -> Outcome:
    """Register, and compare with the rigid fit of the landmarks."""
    begin = time.process_time()
    result = _METRICS[metric](fixed.scan, moving.scan, kind)
    cpu_s = time.process_time() - begin
    fit = fit_rigid(fixed.landmarks_mm, moving.landmarks_mm)
    u, _, vt = np.linalg.svd(result.fixed_to_moving[:3, :3])
    carried = apply_affine(result.fixed_to_moving, fixed.landmarks_mm)
    fitted = apply_affine(fit, fixed.landmarks_mm)
    return Outcome(
        turned_degrees=float(rotation_angle_degrees(u @ vt @ fit[:3, :3].T)),
        error_mm=mean_distance(carried, fitted),
        carried_mm=mean_distance(carried, moving.landmarks_mm),
        best_mm=mean_distance(fitted, moving.landmarks_mm),
        quality=result.quality,
        margin=result.lead,
        cpu_s=cpu_s,
    )


def mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of points (K, 3), in their unit."""
    return float(np.linalg.norm(a - b, axis=1).mean())


def summary(outcomes: list[Outcome]) -> str:
    """The figures of one row: medians, but for the largest error and the mean CPU time."""
    columns = dict(zip(Outcome._fields, np.array(outcomes).T, strict=True))
    error_mm, turned_degrees = columns["error_mm"], columns["turned_degrees"]
    success = (turned_degrees < _SUCCESS_DEGREES) & (error_mm < _SUCCESS_MM)
    carried, best, quality, margin = (
        np.median(columns[name]) for name in ("carried_mm", "best_mm", "quality", "margin")
    )
    return (
        f"{success.sum()} of {len(outcomes)} | {np.median(error_mm):.2f} / {error_mm.max():.2f} | "
        f"{carried:.2f} | {best:.2f} | {quality:.3f} | {margin:.3f} | {columns['cpu_s'].mean():.1f}"
    )


if __name__ == "__main__":
    app.run(main)
