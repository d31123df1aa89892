"""Errors of a model of any scan, by what kind of scan it is shown: people that it has not seen.

    python -m experiments.phantoms.looks --checkpoint=runs/any

Label maps of new people are drawn as images, one kind at a time: contrasts, fields of view, what
other people's programs leave of a scan, resolution. Each person is the same in all kinds, turned by
10 degrees and moved by 12 mm (SD) about and along each axis. Only landmarks within the field of
view count. In the table: mean and median error of those that are not hidden; how many of these are
over 10 mm off with a radius of less than that, which nothing warns of; the share held by the radii;
scans that are refused; and of landmarks outside of the scan, how many are said to be.
"""

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmark.config import Appearance
from jaxmark.core.appearance import appearance
from jaxmark.core.geometry import apply_affine
from jaxmark.core.grids import centred
from jaxmark.core.tissues import TARGET
from jaxmark.data.cases import HostBatch
from jaxmark.data.phantoms.cow.labels import draw_labels
from jaxmark.data.phantoms.grids import Grid
from jaxmark.inference.model import TrainedModel
from jaxmark.workflow import load_model

# No cohort and no stream has it.
SEED = 7001
FAR_MM = 10.0
_WHOLE: dict[str, Any] = {
    "slab": 0.0,
    "box": 0.0,
    "stripped": 0.0,
    "thresholded": 0.0,
    "vessels_only": 0.0,
}
_PLAIN = dataclasses.replace(Appearance(drawn=True, mra=0.5, cta=0.5), **_WHOLE)
# Kind -> what is changed of a plain MRA or CTA of the whole head.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "MRA": {"mra": 1.0, "cta": 0.0},
    "CTA": {"mra": 0.0, "cta": 1.0},
    "any contrast": {"mra": 0.0, "cta": 0.0, "dark": 0.0},
    "arteries dark": {"mra": 0.0, "cta": 0.0, "dark": 1.0},
    "slab": {"slab": 1.0},
    "box": {"box": 1.0},
    "brain alone": {"stripped": 1.0},
    "thresholded": {"thresholded": 1.0},
    "arteries alone": {"vessels_only": 1.0},
    "veins as bright": {"venous": 1.0},
    "moved and wrapped": {"motion": 1.0, "wrapped": 1.0},
    "voxels of 1 to 1.5 mm": {"voxel_mm": (1.0, 1.0), "slice_mm": (1.0, 1.5)},
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One scan, and what is known of it."""

    voxels: np.ndarray
    ijk_to_lps: np.ndarray
    landmarks_mm: np.ndarray  # (K, 3)
    present: np.ndarray  # (K,) within the field of view
    outside: np.ndarray  # (K,) there, but not within it


def people(count: int, grid: Grid) -> Iterator[HostBatch]:
    """Label maps of new people."""
    for number in range(count):
        yield draw_labels(
            grid, SEED, number, rotation_sd_degrees=10.0, translation_sd_mm=12.0, pathology=0.3
        )


@functools.lru_cache(maxsize=1)
def _draw(kind: str, spacing_mm: tuple[float, float, float]) -> Any:
    settings = dataclasses.replace(_PLAIN, **KINDS[kind])
    return jax.jit(functools.partial(appearance, settings=settings, spacing_mm=spacing_mm))


def scan(case: HostBatch, kind: str, grid: Grid, number: int) -> Drawn:
    """A person's scan; of a smaller field of view the box around it."""
    spacing = tuple(float(np.linalg.norm(grid.ijk_to_lps[:3, axis])) for axis in range(3))
    ijk, known = case["landmarks_ijk"], case["present"]
    middle = ijk[known].mean(0) if known.any() else (np.array(grid.shape) - 1) / 2
    image, seen, _ = _draw(kind, spacing)(
        jax.random.key(number),
        jnp.asarray(case["image"][None], jnp.float32) / 255,
        jnp.asarray(case["targets"][TARGET][None]),
        middle_ijk=jnp.asarray(middle[None], jnp.float32),
    )
    seen = np.asarray(seen[0])
    box = tuple(
        slice(int(there[0]), int(there[-1]) + 1)
        for axis in range(3)
        if (there := np.flatnonzero(seen.any(tuple({0, 1, 2} - {axis})))).size
    )
    ijk_to_lps = grid.ijk_to_lps.copy()
    ijk_to_lps[:3, 3] = apply_affine(grid.ijk_to_lps, np.array([s.start for s in box], float))
    nearest = np.clip(np.rint(ijk), 0, np.array(grid.shape) - 1).astype(int)
    inside = seen[tuple(nearest.T)]
    return Drawn(
        voxels=np.asarray(image[0, ..., 0])[box],
        ijk_to_lps=ijk_to_lps,
        landmarks_mm=apply_affine(grid.ijk_to_lps, ijk),
        present=known & inside,
        outside=known & ~inside,
    )


def row(model: TrainedModel, kind: str, cases: list[HostBatch], grid: Grid) -> list[str]:
    """The table's cells."""
    errors, radii, refused, outside, said = [], [], 0, 0, 0
    for number, case in enumerate(cases):
        one = scan(case, kind, grid, number)
        found = model.predict(one.voxels, one.ijk_to_lps, "LPS")
        refused += bool(found.refused)
        hidden = np.isin(found.landmarks, list(found.hidden))
        outside += int(one.outside.sum())
        said += int((one.outside & hidden).sum())
        shown = one.present & ~hidden
        off = np.linalg.norm(found.positions_mm - one.landmarks_mm, axis=1)
        errors += list(off[shown])
        radii += list(found.radius_mm[shown])
    e, r = np.array(errors), np.array(radii)
    silent = (e > FAR_MM) & (r < FAR_MM)
    if not e.size:
        return [kind, "-", "-", "0", "0", "-", f"{refused} of {len(cases)}", f"{said} of {outside}"]
    return [
        kind,
        f"{e.mean():.2f}",
        f"{np.median(e):.2f}",
        str(e.size),
        str(int(silent.sum())),
        f"{100 * (e <= r).mean():.0f} %",
        f"{refused} of {len(cases)}",
        f"{said} of {outside}",
    ]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="work dir of the model, or packed")
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, with commas between")
    options = parser.parse_args()
    model = load_model(options.checkpoint)
    grid = Grid((224, 224, 176), centred((224, 224, 176), (0.8, 0.8, 0.8)).ijk_to_lps)
    cases = list(people(options.people, grid))
    columns = ("kind", "MRE", "median", "points", "far, unsaid", "held", "refused", "outside, said")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for kind in options.kinds.split(","):
        print("| " + " | ".join(row(model, kind, cases, grid)) + " |", flush=True)


if __name__ == "__main__":
    main()
