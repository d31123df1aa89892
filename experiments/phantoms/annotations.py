"""How often a mistake in one case's landmarks is seen, and how often good ones are doubted.

    python -m experiments.phantoms.annotations
    python -m experiments.phantoms.annotations --table=landmarks.csv --sizes=8,20

Cohorts are drawn from the phantom's people (or from a table of real ones: case, landmark, x, y, z).
In each, one case after the other gets each kind of mistake, and the others are as they were: a
mistake counts as seen where its case is named with its kind (and, for single landmarks, its name).
`--turned` turns every head by a standard deviation of so many degrees about each axis, as if
nothing had registered them.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from jaxmark.core.anatomy import COW19, scheme_of
from jaxmark.core.plausibility import Contradiction, contradictions
from jaxmark.data.landmarks import read_table
from jaxmark.data.phantoms.cow.shape import draw_anatomy

FAR_MM = (10, 15, 25)
NEGATION = np.array([-1.0, -1.0, 1.0])


def mistakes(
    points: np.ndarray, mirrored: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray, str, set[int]]]:
    """Name, landmarks (K, 3) with the mistake, the kind and the landmarks to be named."""
    yield "x and y negated", points * NEGATION, "negated", set()
    if (mirrored != np.arange(len(mirrored))).any():
        yield "right and left exchanged", points[mirrored], "sides", set()
    for far_mm in FAR_MM:
        k, away = int(rng.integers(len(points))), rng.standard_normal(3)
        moved = points.copy()
        moved[k] += far_mm * away / np.linalg.norm(away)
        yield f"one point {far_mm} mm off", moved, "far", {k}
    a, b = rng.choice(len(points), 2, replace=False).tolist()
    apart = float(np.linalg.norm(points[a] - points[b]))
    swapped = points.copy()
    swapped[[a, b]] = points[[b, a]]
    distance = "under 15 mm" if apart < 15 else "15 mm or more"
    yield f"two names exchanged, {distance} apart", swapped, "exchanged", {a, b}


def is_seen(found: Contradiction | None, kind: str, landmarks: set[int]) -> bool:
    """Whether the mistake was named for what it is."""
    return found is not None and found.kind == kind and landmarks <= set(found.landmarks)


def cohorts(
    people: np.ndarray | None, size: int, count: int, turned: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """(size, K, 3) each: of phantoms, or drawn from real people."""
    for _ in range(count):
        if people is None:
            drawn = np.stack([draw_anatomy(rng, 3.0, 2.0).landmarks_mm for _ in range(size)])
        else:
            drawn = people[rng.choice(len(people), size, replace=False)]
        if turned:
            turns = Rotation.from_euler("xyz", rng.normal(0, turned, (size, 3)), degrees=True)
            drawn = np.einsum("nij,nkj->nki", turns.as_matrix(), drawn)
        yield drawn


def read_people(table: Path, frame: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and (N, K, 3) of the cases that have all landmarks of the first."""
    cases = read_table(table, frame)
    names = tuple(next(iter(cases.values())))
    whole = [p for p in cases.values() if all(p.get(name) is not None for name in names)]
    return names, np.stack([np.stack([np.asarray(p[name]) for name in names]) for p in whole])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="8,20,40", help="cases of a cohort")
    parser.add_argument("--cases", type=int, default=400, help="of each size, in all cohorts")
    parser.add_argument("--tried", type=int, default=8, help="cases of a cohort with a mistake")
    parser.add_argument("--turned", type=float, default=0.0, help="degrees (SD)")
    parser.add_argument("--table", type=Path, help="landmarks of real people")
    parser.add_argument("--frame", default="", help="LPS or RAS, where the table states none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names, people = COW19.landmarks, None
    if arguments.table:
        names, people = read_people(arguments.table, arguments.frame)
    mirrored = scheme_of(names).mirrored
    sizes = [int(size) for size in arguments.sizes.split(",")]
    columns: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for size in sizes:
        rng = np.random.default_rng([arguments.seed, size])
        count = max(arguments.cases // size, 1)
        for good in cohorts(people, size, count, arguments.turned, rng):
            found = contradictions(good, good * NEGATION, mirrored)
            columns["(none: false alarms)"][size] += [case in found for case in range(size)]
            for case in range(min(arguments.tried, size)):
                for name, points, kind, landmarks in mistakes(good[case], mirrored, rng):
                    bad = good.copy()
                    bad[case] = points
                    found = contradictions(bad, bad * NEGATION, mirrored)
                    columns[name][size].append(is_seen(found.get(case), kind, landmarks))
    print("| mistake in one case | " + " | ".join(f"{size} cases" for size in sizes) + " |")
    print("|---|" + "---|" * len(sizes))
    for name, rows in columns.items():
        cells = [
            f"{100 * np.mean(rows[size]):.1f} % of {len(rows[size])}" if rows[size] else ""
            for size in sizes
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
