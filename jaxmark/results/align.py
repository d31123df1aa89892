"""Alignment of two scans by their landmarks alone, written as files.

```
output/<moving>_on_<fixed>.nii.gz   the moving scan on the fixed scan's own grid
output/transform.tfm                ITK's: fixed to moving, LPS mm; rigid, similarity, affine
output/displacement.mha             the map for a thin-plate spline, on the fixed scan's grid
output/residuals.csv                the pairs of landmarks with their distances
output/checkerboard.png             both scans on three planes, before and after
output/alignment.json               written last: kind, matrix, figures, what was left out and why
```
"""

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.alignment import (
    LEAST_PAIRS,
    Fit,
    Kind,
    Transform,
    fit,
    leave_one_out_mm,
    variance_of_radii,
)
from jaxmark.core.geometry import apply_affine
from jaxmark.data.landmarks import check_case, in_lps, read_content
from jaxmark.data.notes import summed_up
from jaxmark.data.resampling import resample, slices_of, warp
from jaxmark.data.scans import Scan, case_name, read_scan, write_scan
from jaxmark.data.transforms import write_displacements, write_transform
from jaxmark.inference.model import ScanLandmarks
from jaxmark.results.figures import pictures
from jaxmark.system.errors import InputError, about
from jaxmark.system.files import replacing, write_json, write_text_atomic

SCHEMA_VERSION = 1
TRANSFORM, DISPLACEMENT = "transform.tfm", "displacement.mha"
# A pair whose robust weight fell below this share gets a warning.
_LOW_WEIGHT = 0.25
# Messages name this many landmarks, and count the others.
_MOST_NAMED = 5
# A map that stretches lengths beyond these gets a warning: heads differ less in size.
_LEAST_STRETCH, _MOST_STRETCH = 0.5, 2.0
# Nodes of the fixed grid that are checked for folds.
_FOLD_NODES = 40_000
# Nodes of a displacement field: 100,000 are 1.2 MB of float32.
_FIELD_NODES = 10_000_000
# Pixels along the longer side of a plane of the picture.
_PIXELS = 400


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two scans, and its landmarks."""

    path: Path
    scan: Scan
    # Usable landmarks: (3,) LPS mm.
    points: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    # Variance of each in mm^2 along each axis; empty: unknown.
    variance: dict[str, float] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # landmark -> why
    source: str = ""  # landmark file or model
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def with_prediction(self, found: ScanLandmarks, model: str) -> "Side":
        """This side with the landmarks that a trained model found, without hidden ones."""
        left_out = found.why_hidden()
        used = ~np.isin(found.landmarks, [*left_out])
        names = [name for name in found.landmarks if name not in left_out]
        variance = variance_of_radii(found.radius_mm[used], found.coverage)
        known = bool(len(names)) and bool(np.isfinite(variance).all())
        return dataclasses.replace(
            self,
            points=dict(zip(names, found.positions_mm[used], strict=True)),
            variance=dict(zip(names, variance.tolist(), strict=True)) if known else {},
            left_out=left_out,
            source=model,
            doubts=found.doubts,
        )

    @property
    def name(self) -> str:
        """The name for files."""
        path = self.path.absolute()
        return case_name(path) or path.name


def read_side(given: tuple[Path, Path | None]) -> Side:
    """Read a scan and, if given, its landmark file.

    Raises:
      InputError: either cannot be read; the scan's name can't be a file's name; the landmark file
        states no frame.
    """
    path, file = given
    side = Side(path, read_scan(path))
    check_case(path, side.name)
    side = dataclasses.replace(side, notes=side.scan.notes)
    if file is None:
        return side
    content = read_content(file)
    if not content.says_unit:
        raise InputError(
            file,
            "states no coordinate frame; a table states it in names of columns, such as x_lps_mm, "
            "or in a line '# frame: LPS' above them",
        )
    points, left_out = {}, {}
    for name, xyz in in_lps(content).items():
        if xyz is None or name in content.unlikely:
            left_out[name] = "absent" if xyz is None else "probably absent"
        elif np.isfinite(xyz).all():
            points[name] = xyz
        else:
            left_out[name] = "not annotated"
    notes = (*side.notes, *summed_up(content.notes))
    return dataclasses.replace(
        side, points=points, left_out=left_out, source=str(file), notes=notes
    )


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The pairs of K landmarks that two scans have in common, and the map that was fitted."""

    kind: Kind
    fixed: Side
    moving: Side
    landmarks: tuple[str, ...]
    fixed_mm: np.ndarray  # (K, 3)
    moving_mm: np.ndarray  # (K, 3)
    fit: Fit
    leave_one_out_mm: np.ndarray  # (K,) error by a map from the others; NaN if they are too few
    left_out: dict[str, str]  # landmark -> why
    folded: float  # share of the fixed grid that the map folds or mirrors
    doubts: tuple[str, ...]

    @property
    def before_mm(self) -> np.ndarray:
        """(K,) distances of the landmarks in the scans' own worlds."""
        return np.linalg.norm(self.fixed_mm - self.moving_mm, axis=1)

    @property
    def after_mm(self) -> np.ndarray:
        """(K,) distances of the mapped fixed landmarks from the moving ones."""
        return np.linalg.norm(self.fit.transform(self.fixed_mm) - self.moving_mm, axis=1)

    @property
    def interpolates(self) -> bool:
        """Whether the map goes through all landmarks, whatever their weights."""
        return self.kind == "thin_plate" and self.fit.smoothing is None

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that say what was guessed or repaired when the scans were read."""
        sides = (self.fixed, self.moving)
        return tuple(f"{side.path}: {note}" for side in sides for note in side.notes)

    def rms_mm(self, distances_mm: np.ndarray) -> float:
        """Root mean square with the weights of the fit; NaN if a distance is unknown."""
        return float(np.sqrt(self.fit.weights @ distances_mm**2))

    def summary(self, folder: Path) -> str:
        """One line for a terminal."""
        before, after, alone = map(
            self.rms_mm, (self.before_mm, self.after_mm, self.leave_one_out_mm)
        )
        unused = f" ({len(self.left_out)} not used)" * bool(self.left_out)
        others = f", {alone:.2f} mm by the others (leave-one-out)" if np.isfinite(alone) else ""
        return (
            f"{self.kind} map by {len(self.landmarks)} landmarks{unused}: RMS residual "
            f"{before:.2f} mm before, {after:.2f} mm after{others}; written to {folder}"
        )


def align_sides(fixed: Side, moving: Side, kind: Kind) -> Alignment:
    """Fit the map from the fixed to the moving scan by the landmarks that both have.

    Raises:
      InputError: they are too few for this kind of map, or lie on a line or in a plane.
    """
    names = tuple(name for name in fixed.points if name in moving.points)
    left_out = _left_out(fixed, moving)
    if len(names) < LEAST_PAIRS[kind]:
        why = "; ".join(f"{name!r}: {reason}" for name, reason in [*left_out.items()][:_MOST_NAMED])
        more = f" and {len(left_out) - _MOST_NAMED} more" * (len(left_out) > _MOST_NAMED)
        raise InputError(
            moving.path,
            f"has {len(names)} usable landmarks in common with {fixed.path}, and a map that is "
            f"{kind} needs {LEAST_PAIRS[kind]}" + (f" (left out: {why}{more})" if why else ""),
        )
    fixed_mm = np.stack([fixed.points[name] for name in names])
    moving_mm = np.stack([moving.points[name] for name in names])
    variance = None
    if fixed.variance or moving.variance:
        # Landmarks of a file count as exact beside predicted ones.
        variance = np.array(
            [fixed.variance.get(name, 0.0) + moving.variance.get(name, 0.0) for name in names]
        )
    with about(moving.path):
        fitted = fit(kind, fixed_mm, moving_mm, variance)
    alignment = Alignment(
        kind=kind,
        fixed=fixed,
        moving=moving,
        landmarks=names,
        fixed_mm=fixed_mm,
        moving_mm=moving_mm,
        fit=fitted,
        leave_one_out_mm=leave_one_out_mm(kind, fixed_mm, moving_mm, variance),
        left_out=left_out,
        folded=_folded(fitted.transform, fixed.scan),
        doubts=(),
    )
    return dataclasses.replace(alignment, doubts=tuple(_doubts(alignment)))


def write_alignment(alignment: Alignment, folder: Path) -> None:
    """Write all files; see the module's docstring.

    Raises:
      OSError: a file cannot be written.
    """
    fixed, moving = alignment.fixed, alignment.moving
    transform, grid = alignment.fit.transform, fixed.scan
    shape = grid.voxels.shape
    # Remove the other kind of file, of an earlier map.
    (folder / (DISPLACEMENT if transform.is_linear else TRANSFORM)).unlink(missing_ok=True)
    image = warp(moving.scan, shape, grid.ijk_to_lps, transform)
    write_scan(folder / f"{moving.name}_on_{fixed.name}.nii.gz", image, grid.ijk_to_lps)
    if transform.is_linear:
        write_transform(folder / TRANSFORM, transform.matrix)
    else:
        # Every voxel, except in very large scans.
        step = _step(grid, _FIELD_NODES)
        x, y, z = ((n - 1 + step - 1) // step + 1 for n in shape)
        field_grid = grid.ijk_to_lps @ np.diag([step, step, step, 1.0])
        write_displacements(folder / DISPLACEMENT, transform, (x, y, z), field_grid)
    write_text_atomic(folder / "residuals.csv", _table(alignment))
    with replacing(folder / "checkerboard.png") as temporary:
        temporary.write_bytes(_picture(alignment))
    write_json(folder / "alignment.json", _describe(alignment))


def _left_out(fixed: Side, moving: Side) -> dict[str, str]:
    """Landmark -> why it is not used."""
    reasons = defaultdict(list)
    for side, other, which in ((fixed, moving, "fixed"), (moving, fixed, "moving")):
        for name, why in side.left_out.items():
            reasons[name].append(f"{which}: {why}")
        for name in other.points:
            if name not in side.points and name not in side.left_out:
                reasons[name].append(f"{which}: not in {side.source}")
    return {name: "; ".join(whys) for name, whys in reasons.items()}


def _folded(transform: Transform, grid: Scan) -> float:
    """Share of the grid's nodes where the determinant of the map's Jacobian is not positive."""
    step = _step(grid, _FOLD_NODES)
    x, y, z = (-(-n // step) for n in grid.voxels.shape)
    nodes = slices_of((x, y, z), grid.ijk_to_lps @ np.diag([step, step, step, 1.0]))
    return float(np.mean([np.linalg.det(transform.jacobian(p)) <= 0 for p in nodes]))


def _step(grid: Scan, nodes: int) -> int:
    """Step in voxels along each axis that leaves about `nodes` nodes of the grid, at least 1."""
    return max(1, round((grid.voxels.size / nodes) ** (1 / 3)))


def _doubts(alignment: Alignment) -> Iterator[str]:
    """Warnings for the user, one line each."""
    if alignment.fixed.path.resolve() == alignment.moving.path.resolve():
        yield f"{alignment.fixed.path}: is both the fixed and the moving scan"
    for side in (alignment.fixed, alignment.moving):
        yield from (f"{side.path}: {doubt}" for doubt in side.doubts)
        ijk = apply_affine(np.linalg.inv(side.scan.ijk_to_lps), np.stack([*side.points.values()]))
        beside = ((ijk < -0.5) | (ijk > np.array(side.scan.voxels.shape) - 0.5)).any(1).sum()
        if beside:
            yield f"{side.path}: {beside} of {len(ijk)} landmarks lie outside of the scan"
    voxel_mm = float(alignment.moving.scan.spacing_mm.max())
    alone_mm = alignment.leave_one_out_mm
    far = (alignment.fit.trust < _LOW_WEIGHT) & (alone_mm > voxel_mm)
    for k in np.flatnonzero(far)[:_MOST_NAMED]:
        share = 100 * alignment.fit.trust[k]
        yield (
            f"landmark {alignment.landmarks[k]!r} is {alone_mm[k]:.1f} mm from where the others "
            "place it"
            + (f"; {share:.0f} % of its weight count" if not alignment.interpolates else "")
        )
    if far.sum() > _MOST_NAMED:
        yield f"so are {far.sum() - _MOST_NAMED} more: see residuals.csv"
    linear = alignment.fit.transform.matrix[:3, :3]
    stretch = np.linalg.svd(linear, compute_uv=False)
    if np.linalg.det(linear) < 0:
        yield "the map mirrors: right and left are exchanged in the landmarks of one scan"
    elif stretch.max() > _MOST_STRETCH or stretch.min() < _LEAST_STRETCH:
        yield f"the map stretches lengths by {stretch.min():.2f} to {stretch.max():.2f}"
    elif alignment.folded:
        yield f"the map folds {100 * alignment.folded:.2g} % of the fixed scan"


def _table(alignment: Alignment) -> str:
    """CSV with one row for each pair; lengths in mm, positions in each scan's own LPS mm."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    places = [f"{scan}_{axis}_lps_mm" for scan in ("fixed", "moving") for axis in "xyz"]
    distances = ["residual_before_mm", "residual_after_mm", "leave_one_out_mm"]
    writer.writerow(["landmark", *places, "weight", "trust", *distances])
    numbers = np.column_stack(
        [
            alignment.fixed_mm,
            alignment.moving_mm,
            alignment.fit.weights,
            alignment.fit.trust,
            alignment.before_mm,
            alignment.after_mm,
            alignment.leave_one_out_mm,
        ]
    )
    for name, row in zip(alignment.landmarks, numbers.tolist(), strict=True):
        writer.writerow([name, *("" if np.isnan(number) else repr(number) for number in row)])
    return text.getvalue()


def _describe(alignment: Alignment) -> dict[str, Any]:
    fixed, moving = alignment.fixed, alignment.moving
    fitted, transform = alignment.fit, alignment.fit.transform
    distances = {
        "before": alignment.before_mm,
        "after": alignment.after_mm,
        "leave_one_out": alignment.leave_one_out_mm,
    }
    spline = None
    if not transform.is_linear:
        spline = {
            "centres_lps_mm": transform.centres.tolist(),
            "coefficients": transform.coefficients.tolist(),
            "smoothing": fitted.smoothing,
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": alignment.kind,
        "fixed": {"scan": str(fixed.path), "landmarks": fixed.source},
        "moving": {"scan": str(moving.path), "landmarks": moving.source},
        "direction": "points of the fixed scan to points of the moving one, LPS mm",
        "matrix": transform.matrix.tolist(),
        # matrix p - sum_c |p - centre_c| coefficient_c
        "spline": spline,
        "landmarks": list(alignment.landmarks),
        "left_out": alignment.left_out,
        "weighted_rms_mm": {n: _number(alignment.rms_mm(mm)) for n, mm in distances.items()},
        "median_mm": {n: _number(float(np.median(mm))) for n, mm in distances.items()},
        "folded_share": alignment.folded,
        "doubts": list(alignment.doubts),
        "notes": list(alignment.notes),
    }


def _picture(alignment: Alignment) -> bytes:
    fixed, moving = alignment.fixed, alignment.moving
    before = Transform(np.eye(4))
    after = alignment.fit.transform
    pulled = after.pulled_back(alignment.moving_mm, alignment.fixed_mm)
    planes = []
    # (name, horizontal axis, vertical axis)
    for name, across, upright in (("coronal", 0, 2), ("sagittal", 1, 2), ("axial", 0, 1)):
        grid, shape, extent = _plane(fixed.scan, alignment.fixed_mm.mean(0), across, upright)
        plane = [across, upright]
        planes.append(
            pictures.Plane(
                name=name,
                across=across,
                upright=upright,
                extent_mm=extent,
                fixed=_shown(fixed.scan, resample(fixed.scan, shape, grid)),
                before=_shown(moving.scan, warp(moving.scan, shape, grid, before)),
                after=_shown(moving.scan, warp(moving.scan, shape, grid, after)),
                fixed_mm=alignment.fixed_mm[:, plane],
                before_mm=alignment.moving_mm[:, plane],
                after_mm=pulled[:, plane],
            )
        )
    rows = (
        f"before: RMS residual {alignment.rms_mm(alignment.before_mm):.2f} mm",
        f"after ({alignment.kind}): {alignment.rms_mm(alignment.after_mm):.2f} mm",
    )
    return pictures.checkerboard(planes, f"{moving.name} on {fixed.name}", rows)


def _plane(
    scan: Scan, through: np.ndarray, across: int, upright: int
) -> tuple[np.ndarray, tuple[int, int, int], tuple[float, float, float, float]]:
    """A plane along two LPS axes, as large as the scan's bounding box.

    Returns:
      (4, 4) voxels of the plane -> LPS mm, its shape (W, H, 1), and (left, right, low, high) in mm.
    """
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(scan.voxels.shape) - 1)
    box = apply_affine(scan.ijk_to_lps, corners)
    low, high = box.min(0), box.max(0)
    plane = [across, upright]
    step = max(float(scan.spacing_mm.min()), float((high - low)[plane].max()) / _PIXELS)
    width, height = (int(n) + 1 for n in (high - low)[plane] / step)
    grid = np.eye(4)
    grid[:3, :3] = 0
    (normal,) = {0, 1, 2} - {across, upright}
    grid[across, 0] = grid[upright, 1] = grid[normal, 2] = step
    grid[:3, 3] = np.where(np.arange(3) == normal, through, low)
    left, bottom = low[plane] - step / 2
    extent = (left, left + width * step, bottom, bottom + height * step)
    return grid, (width, height, 1), extent


def _shown(scan: Scan, plane: np.ndarray) -> np.ndarray:
    """(W, H) in [0, 1], scaled by percentiles of the scan that ignore its brightest voxels."""
    low, high = np.percentile(scan.voxels[::2, ::2, ::2], (0.5, 98.0))
    return np.clip((plane[:, :, 0] - low) / max(high - low, 1e-9), 0, 1)


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
