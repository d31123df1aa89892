"""How many of twenty spoiled annotations --mode=check puts first, and its false alarms.

    python -m experiments.annotation_check --root=FOLDER --output=DIR
    python -m experiments.annotation_check --root=FOLDER --output=DIR --curve=0.25,0.5,1,2

FOLDER holds the mouse heads of `experiments/mouse_ct.py` or another cohort of volumes with at least
16 cases. Each seed spoils twenty annotations in ten ways, two each, in a copy of the cohort under
DIR, and counts which of them are among the first twenty rows. `--curve` instead moves one point of
every case, by each of these lengths in mm. `--points=FOLDER` checks a folder of landmark files
without scans.

Thresholds of `core/suspicion.py` were chosen on seeds 100 to 103; the figures are of other seeds.
"""

import argparse
import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from experiments.commands import errors_on_one_line
from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine
from jaxmark.core.suspicion import LINE, Suspicion, shapes_of
from jaxmark.data.annotated import Annotated, read_annotated
from jaxmark.data.annotation_check import check_annotations, check_points
from jaxmark.data.landmarks import read_landmarks, write_table
from jaxmark.data.looks import Source
from jaxmark.data.resampling import background
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_json

SCHEMA_VERSION = 2
FIRST = 20
NEGATION = np.array([-1.0, -1.0, 1.0])
# Way of spoiling -> kinds of a row that count as right.
WHOLE = ("misplaced", "other case", "doubled landmarks")
RIGHT: dict[str, tuple[str, ...]] = {
    "left and right exchanged": ("exchanged",),
    "neighbours exchanged": ("exchanged",),
    "whole case mirrored": ("mirrored",),
    "voxel indices": ("units",),
    "x and y negated": ("frame",),
    "doubled case": ("doubled scan",),
    "point in air or outside": ("air", "outside"),
    "point moved": ("far", "air"),
    "landmarks of another case": WHOLE,
    "scaled by 1.1": ("size", "misplaced", "units"),
}


@dataclasses.dataclass(frozen=True)
class Spoiled:
    """One annotation that is wrong now."""

    way: str
    cases: tuple[str, ...]  # a row has to name one of them
    landmarks: tuple[str, ...] = ()  # and one of these, if there are any

    def found(self, row: Suspicion, annotated: Annotated) -> bool:
        """Whether the row is about this annotation."""
        named = {annotated.cases[row.case]}
        if row.kind.startswith("doubled"):
            named.add(annotated.cases[row.other or 0])
        points = {annotated.names[k] for k in row.landmarks}
        return bool(named & set(self.cases)) and (
            bool(points & set(self.landmarks)) if self.landmarks else not points
        )


@dataclasses.dataclass
class Cohort:
    """A cohort that is being spoiled."""

    annotated: Annotated
    points: dict[str, np.ndarray]  # (K, 3) mm
    scans: dict[str, Path]
    twins: np.ndarray
    rng: np.random.Generator
    spoiled: list[Spoiled] = dataclasses.field(default_factory=list)

    def note(self, way: str, case: str, *landmarks: int) -> None:
        """Record what was spoiled."""
        names = tuple(self.annotated.names[k] for k in landmarks)
        self.spoiled.append(Spoiled(way, (case,), names))


def exchange_sides(cohort: Cohort, cases: list[str]) -> None:
    for case in cases:
        k = int(cohort.rng.choice(np.flatnonzero(cohort.twins != np.arange(len(cohort.twins)))))
        _exchange(cohort, case, k, int(cohort.twins[k]), "left and right exchanged")


def exchange_neighbours(cohort: Cohort, cases: list[str]) -> None:
    for case in cases:
        at = cohort.points[case]
        k = int(cohort.rng.integers(len(at)))
        nearest = np.argsort(np.linalg.norm(at - at[k], axis=1))
        other = next(int(j) for j in nearest[1:] if j != cohort.twins[k])
        _exchange(cohort, case, k, other, "neighbours exchanged")


def _exchange(cohort: Cohort, case: str, a: int, b: int, way: str) -> None:
    cohort.points[case][[a, b]] = cohort.points[case][[b, a]]
    cohort.note(way, case, a, b)


def mirror(cohort: Cohort, cases: list[str]) -> None:
    for case in cases:
        cohort.points[case] = cohort.points[case][cohort.twins]
        cohort.note("whole case mirrored", case)


def as_voxels(cohort: Cohort, cases: list[str]) -> None:
    for case in cases:
        place = Source(cohort.scans[case]).read().ijk_to_lps
        cohort.points[case] = apply_affine(np.linalg.inv(place), cohort.points[case])
        cohort.note("voxel indices", case)


def negate(cohort: Cohort, cases: list[str]) -> None:
    for case in cases:
        cohort.points[case] = cohort.points[case] * NEGATION
        cohort.note("x and y negated", case)


def double(cohort: Cohort, cases: list[str]) -> None:
    for case in cases:
        name = f"again_{case}"
        jitter = 0.02 * cohort.rng.standard_normal(cohort.points[case].shape)
        cohort.points[name] = cohort.points[case] + jitter
        cohort.scans[name] = cohort.scans[case]
        cohort.spoiled.append(Spoiled("doubled case", (case, name)))


def into_air(cohort: Cohort, cases: list[str]) -> None:
    """Move one point into air, away from the middle, and one out of the scan."""
    for number, case in enumerate(cases):
        scan, points = Source(cohort.scans[case]).read(), cohort.points[case]
        to_ijk, k = np.linalg.inv(scan.ijk_to_lps), int(cohort.rng.integers(len(points)))
        away = points[k] - points.mean(0)
        away /= np.linalg.norm(away)
        dark = background(scan) + 0.02 * float(np.ptp(scan.voxels))
        for step in np.arange(0.5, 60, 0.25):
            at = points[k] + step * away
            ijk = np.rint(apply_affine(to_ijk, at)).astype(int)
            inside = bool(((ijk >= 1) & (ijk < np.array(scan.voxels.shape) - 1)).all())
            if (not inside) if number % 2 else (not inside or _dark(scan.voxels, ijk, dark)):
                break
        points[k] = at
        cohort.note("point in air or outside", case, k)


def _dark(voxels: np.ndarray, ijk: np.ndarray, limit: float) -> bool:
    low = np.maximum(ijk - 2, 0)
    return bool(voxels[tuple(slice(a, b) for a, b in zip(low, ijk + 3, strict=True))].max() < limit)


def move(cohort: Cohort, cases: list[str]) -> None:
    """Move points by 1 mm and 2 mm: five and ten times the difference between annotators."""
    for number, case in enumerate(cases):
        _move(cohort, case, 1.0 + number)


def _move(cohort: Cohort, case: str, mm: float) -> None:
    k, away = int(cohort.rng.integers(len(cohort.twins))), cohort.rng.standard_normal(3)
    cohort.points[case][k] += mm * away / np.linalg.norm(away)
    cohort.note("point moved", case, k)


def exchange_cases(cohort: Cohort, cases: list[str]) -> None:
    first, second = cases
    points = cohort.points
    points[first], points[second] = points[second], points[first]
    for case in cases:
        cohort.note("landmarks of another case", case)


def enlarge(cohort: Cohort, cases: list[str]) -> None:
    for case in cases:
        cohort.points[case] = 1.1 * cohort.points[case]
        cohort.note("scaled by 1.1", case)


WAYS: tuple[Callable[[Cohort, list[str]], None], ...] = (
    *(exchange_sides, exchange_neighbours, mirror, as_voxels, negate),
    *(double, into_air, move, exchange_cases, enlarge),
)


def spoil(annotated: Annotated, seed: int) -> Cohort:
    """Spoil two cases by each of `WAYS`; in a cohort under twenty cases, points share cases."""
    cohort = _cohort(annotated, seed)
    order = [str(case) for case in cohort.rng.permutation(annotated.cases)]
    for number, way in enumerate(WAYS):
        way(cohort, [order[(2 * number + j) % len(order)] for j in range(2)])
    return cohort


def move_all(annotated: Annotated, seed: int, mm: float) -> Cohort:
    """Move one point of every case by `mm`."""
    cohort = _cohort(annotated, seed)
    for case in annotated.cases:
        _move(cohort, case, mm)
    return cohort


def _cohort(annotated: Annotated, seed: int) -> Cohort:
    none = np.arange(len(annotated.names))
    shapes = shapes_of(annotated.points_mm, none)
    return Cohort(
        annotated,
        dict(zip(annotated.cases, annotated.points_mm.copy(), strict=True)),
        dict(zip(annotated.cases, annotated.scans, strict=True)),
        none if shapes is None else shapes.twins,
        np.random.default_rng(seed),
    )


def check(cohort: Cohort, folder: Path, workers: int) -> tuple[Annotated, list[Suspicion]]:
    """Write the spoiled cohort as files, read and check it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for case, scan in cohort.scans.items():
        link = folder / "images" / f"{case}{''.join(scan.suffixes[-2:])}"
        if not link.is_symlink():
            os.symlink(scan.resolve(), link)
    names = cohort.annotated.names
    tables = {c: dict(zip(names, points, strict=True)) for c, points in cohort.points.items()}
    write_table(folder / "landmarks.csv", tables)
    data = Data(root=str(folder), workers=workers)
    annotated = read_annotated(data)
    return annotated, check_annotations(annotated, data)


def first_rows(
    cohort: Cohort, annotated: Annotated, rows: list[Suspicion]
) -> Iterator[tuple[Spoiled, Suspicion | None]]:
    """Each spoiled annotation, with the first row that finds it among the first rows."""
    for one in cohort.spoiled:
        yield one, next((row for row in rows[:FIRST] if one.found(row, annotated)), None)


def twenty(annotated: Annotated, seeds: list[int], output: Path, workers: int) -> dict[str, object]:
    """Print a row for each seed, and counts by way of spoiling."""
    found: dict[str, list[bool]] = defaultdict(list)
    named: dict[str, list[bool]] = defaultdict(list)
    counts, false = [], []
    for seed in seeds:
        cohort = spoil(annotated, seed)
        spoiled, rows = check(cohort, output / f"seed-{seed}", workers)
        pairs = list(first_rows(cohort, spoiled, rows))
        for one, row in pairs:
            found[one.way].append(row is not None)
            named[one.way].append(row is not None and row.kind in RIGHT[one.way])
        counts.append(sum(row is not None for _, row in pairs))
        wrong = [
            row
            for row in rows
            if row.suspicion >= LINE and not any(one.found(row, spoiled) for one in cohort.spoiled)
        ]
        false.append(len(wrong))
        lost = [f"{one.way} ({one.cases[0]})" for one, row in pairs if row is None]
        print(f"seed {seed}: {counts[-1]} of {len(pairs)} among the first {FIRST}; lost: {lost}")
        for row in wrong:
            names = [spoiled.names[k] for k in row.landmarks]
            print(f"  beside: {spoiled.cases[row.case]} {names} {row.kind} {row.suspicion:.1f}")
    print("| spoiled | found | called what it is | of |\n|---|---|---|---|")
    for way, values in found.items():
        print(f"| {way} | {sum(values)} | {sum(named[way])} | {len(values)} |")
    print(f"mean {np.mean(counts):.2f}, least {min(counts)}; other rows above the line: {false}")
    return {
        "seeds": seeds,
        "found": counts,
        "other_rows_above_the_line": false,
        "by_way": {w: [sum(v), sum(named[w]), len(v)] for w, v in found.items()},
    }


def curve(
    annotated: Annotated, seeds: list[int], lengths: list[float], output: Path, workers: int
) -> dict[str, object]:
    """Count found points by the length of their move."""
    found: dict[str, object] = {}
    print(f"| moved by mm | above the line | among the first {FIRST} | of | other rows above |")
    print("|---|---|---|---|---|")
    for mm in lengths:
        above, first, other = [], [], 0
        for seed in seeds:
            cohort = move_all(annotated, seed, mm)
            spoiled, rows = check(cohort, output / f"moved-{seed}-{mm:g}", workers)
            line = [row for row in rows if row.suspicion >= LINE]
            above += [any(o.found(row, spoiled) for row in line) for o in cohort.spoiled]
            first += [row is not None for _, row in first_rows(cohort, spoiled, rows)]
            other += sum(not any(o.found(r, spoiled) for o in cohort.spoiled) for r in line)
        found[f"{mm:g}"] = {
            "points": len(above),
            "above_the_line": sum(above),
            "among_the_first": sum(first),
            "other_rows_above_the_line": other,
        }
        cells = (f"{mm:g}", sum(above), sum(first), len(above), other)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return found


def points_alone(folder: Path) -> None:
    """Check a folder of landmark files without scans."""
    files = sorted(p for p in folder.glob("*") if p.name.endswith((".fcsv", ".mrk.json")))
    if not files:
        raise InputError("--points", f"there are no files .fcsv or .mrk.json in {folder}")
    sets = [read_landmarks(path) for path in files]
    names = tuple(sets[0])
    missing = np.full(3, np.nan)
    points = np.stack(
        [np.stack([np.nan_to_num(s.get(n, missing), nan=np.nan) for n in names]) for s in sets]
    )
    rows = check_points(points, names)
    above = [row for row in rows if row.suspicion >= LINE]
    print(f"{len(files)} cases, {len(names)} landmarks: {len(above)} rows above the line")
    for row in above:
        print(f"  {files[row.case].name} {[names[k] for k in row.landmarks]} {row.kind}")


def whole_numbers(text: str) -> list[int]:
    """[0, 1] from "0,1"."""
    return [int(word) for word in text.split(",")]


def millimetres(text: str) -> list[float]:
    """[0.5, 1.0] from "0.5,1"."""
    return [float(word) for word in text.split(",")]


def main() -> None:
    """Print tables; write `annotation_check.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="the cohort")
    parser.add_argument("--output", type=Path, default=Path("runs/annotation_check"))
    parser.add_argument("--seeds", type=whole_numbers, default=list(range(10)), help="0,1,...")
    parser.add_argument(
        "--curve", type=millimetres, help="0.5,1: how far to move points, in place of the twenty"
    )
    parser.add_argument("--points", type=Path, help="a folder of landmark files without scans")
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.root or arguments.points):
        parser.error("--root or --points is required")
    with errors_on_one_line():
        if arguments.points:
            points_alone(arguments.points)
        if not arguments.root:
            return
        annotated = read_annotated(Data(root=str(arguments.root)))
        tree: dict[str, object] = {"schema_version": SCHEMA_VERSION}
        how = arguments.output, arguments.workers
        if arguments.curve:
            tree["curve"] = curve(annotated, arguments.seeds, arguments.curve, *how)
        else:
            data = Data(root=str(arguments.root), workers=arguments.workers)
            rows = [r for r in check_annotations(annotated, data) if r.suspicion >= LINE]
            print(f"as it is: {len(rows)} rows above the line in {len(annotated.cases)} cases")
            tree["false_alarms"] = len(rows)
            tree["twenty"] = twenty(annotated, arguments.seeds, *how)
        write_json(arguments.output / "annotation_check.json", tree)


if __name__ == "__main__":
    main()
