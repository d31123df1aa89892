"""How well landmarks alone bring two phantoms together, by each kind of map.

python -m experiments.phantoms.alignment --pairs=20

Three sorts of pairs. *Re-posed*: one person, turned by up to 180 degrees, moved by up to 40 mm
along each axis, and scaled by 0.9 to 1.1. *Two times*: one person, turned by up to 15 degrees and
moved by up to 10 mm, as in a scan of a later day. *Two people*: two anatomies, each as the cohort
has it.

Each map is fitted with true landmarks, and with landmarks that are off, in both scans, by 2 mm
(root mean square); then once more with one of them 25 mm off. Errors are medians over pairs of the
mean of a pair: at landmarks that were left out, one at a time, and at points on centrelines of
segments that both people have, at equal shares of their lengths. Left-out landmarks and centrelines
are the true ones.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import app, flags
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from jaxmark.core.alignment import KINDS, Kind, fit
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, PhantomCase, make_case

_PAIRS = flags.DEFINE_integer("pairs", 20, "Of each sort.")
_SEED = flags.DEFINE_integer("seed", 0, "Of people, motions and errors.")

# Images are not looked at: few voxels, which hold all landmarks.
_PHANTOM = CirclePhantom(spacing_mm=(8.0, 8.0, 8.0), shape=(24, 24, 24))
# Root mean square of a landmark's error, and of the grossly wrong one.
_NOISE_MM, _GROSS_MM = 2.0, 25.0
# Points on each centreline.
_SHARES = np.linspace(0.05, 0.95, 10)


class Person(NamedTuple):
    """What two scans have in common, LPS mm."""

    landmarks_mm: np.ndarray  # (19, 3)
    present: np.ndarray  # (19,)
    centrelines_mm: dict[str, np.ndarray]  # segment -> (10, 3)


class Errors(NamedTuple):
    """Mean errors of a pair in mm."""

    left_out: float
    on_centrelines: float


def main(_: list[str]) -> None:
    """Fit all maps to all pairs, and print the table in Markdown."""
    found: dict[tuple[str, str, Kind], list[Errors]] = defaultdict(list)
    for number in tqdm(range(_PAIRS.value), desc="pairs"):
        rng = np.random.default_rng([_SEED.value, number])
        for sort, fixed, moving in pairs(number, rng):
            seen = disturbed(rng, fixed), disturbed(rng, moving)
            gross = disturbed(rng, fixed), with_gross_error(rng, disturbed(rng, moving))
            for landmarks, (a, b) in {
                "true": (fixed, moving),
                f"{_NOISE_MM:g} mm off": seen,
                f"{_NOISE_MM:g} mm off, one {_GROSS_MM:g} mm": gross,
            }.items():
                # Every landmark's error is as large: what predictions state of theirs.
                variance = None if a is fixed else np.full(19, 2 * _NOISE_MM**2 / 3)
                for kind in KINDS:
                    errors = measure(kind, fixed, moving, a, b, variance)
                    found[sort, landmarks, kind].append(errors)
    print(f"| pair | landmarks | {' | '.join(KINDS)} |")
    print("|---|---|" + "---|" * len(KINDS))
    for sort, landmarks in dict.fromkeys(key[:2] for key in found):
        cells = (summary(found[sort, landmarks, kind]) for kind in KINDS)
        print(f"| {sort} | {landmarks} | {' | '.join(cells)} |")


def pairs(number: int, rng: np.random.Generator) -> Iterator[tuple[str, Person, Person]]:
    """The sort of pair, the fixed and the moving person."""
    one, other = person(2 * number), person(2 * number + 1)
    scale = rng.uniform(0.9, 1.1)
    yield "re-posed", one, moved(one, motion(rng, 180, 40, scale))
    yield "two times", one, moved(one, motion(rng, 15, 10, 1.0))
    yield "two people", one, other


def person(number: int) -> Person:
    """One of the cohort."""
    case = make_case(dataclasses.replace(_PHANTOM, seed=_SEED.value), number)
    return Person(case.anatomy.landmarks_mm, case.annotated, centrelines(case))


def centrelines(case: PhantomCase) -> dict[str, np.ndarray]:
    """Vessel -> points at equal shares of its length, for vessels of the scheme's segments."""
    lines = {}
    for vessel in case.vessels:
        if vessel.segment < 0:
            continue
        steps = np.linalg.norm(np.diff(vessel.points_mm, axis=0), axis=1)
        share = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
        points = [np.interp(_SHARES, share, column) for column in vessel.points_mm.T]
        lines[vessel.name] = np.stack(points, 1)
    return lines


def motion(rng: np.random.Generator, degrees: float, shift_mm: float, scale: float) -> np.ndarray:
    """(4, 4): a rotation about any axis by up to so many degrees, a shift, and the scale."""
    axis = rng.standard_normal(3)
    angle = np.radians(rng.uniform(0, degrees))
    turn = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    return compose_affine(scale * turn, rng.uniform(-shift_mm, shift_mm, 3))


def moved(who: Person, matrix: np.ndarray) -> Person:
    """The person elsewhere."""
    lines = {name: apply_affine(matrix, points) for name, points in who.centrelines_mm.items()}
    return Person(apply_affine(matrix, who.landmarks_mm), who.present, lines)


def disturbed(rng: np.random.Generator, who: Person) -> Person:
    """With errors of landmarks."""
    errors = rng.normal(0, _NOISE_MM / np.sqrt(3), who.landmarks_mm.shape)
    return who._replace(landmarks_mm=who.landmarks_mm + errors)


def with_gross_error(rng: np.random.Generator, who: Person) -> Person:
    """One landmark far off."""
    landmarks, which = who.landmarks_mm.copy(), rng.choice(np.flatnonzero(who.present))
    direction = rng.standard_normal(3)
    landmarks[which] += _GROSS_MM * direction / np.linalg.norm(direction)
    return who._replace(landmarks_mm=landmarks)


def measure(
    kind: Kind,
    fixed: Person,
    moving: Person,
    fixed_seen: Person,
    moving_seen: Person,
    variance: np.ndarray | None,
) -> Errors:
    """Fit to what was seen, judge by what is true."""
    both = fixed.present & moving.present
    variance = None if variance is None else variance[both]
    a, b = fixed_seen.landmarks_mm[both], moving_seen.landmarks_mm[both]
    truth_a, truth_b = fixed.landmarks_mm[both], moving.landmarks_mm[both]
    left_out = []
    for k in range(len(a)):
        others = np.arange(len(a)) != k
        part = None if variance is None else variance[others]
        transform = fit(kind, a[others], b[others], part).transform
        left_out.append(np.linalg.norm(transform(truth_a[k]) - truth_b[k]))
    transform = fit(kind, a, b, variance).transform
    names = sorted(fixed.centrelines_mm.keys() & moving.centrelines_mm.keys())
    from_fixed = np.concatenate([fixed.centrelines_mm[name] for name in names])
    to_moving = np.concatenate([moving.centrelines_mm[name] for name in names])
    apart = np.linalg.norm(transform(from_fixed) - to_moving, axis=1)
    return Errors(float(np.mean(left_out)), float(apart.mean()))


def summary(errors: list[Errors]) -> str:
    """Medians: left-out landmarks, points on centrelines."""
    left_out, on_centrelines = np.median(np.array(errors), axis=0)
    return f"{left_out:.2f}, {on_centrelines:.2f}"


if __name__ == "__main__":
    app.run(main)
