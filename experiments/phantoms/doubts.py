"""How often a trained model doubts good scans, and how often scans unlike its validation cases.

    python -m jaxmark.main --config=experiments/cow.py:small --workdir=runs/small
    python -m experiments.phantoms.doubts --checkpoint=runs/small --folder=OTHER_SCANS

People are drawn that the model has never seen: good scans count as false alarms, the others
(CTA, vessel masks, noise, other sizes, upside down, elsewhere) as found, each with the doubts that
were stated. `--folder` may be given several times: all scans below it, as they lie and with their
middle moved to where the phantoms' is.
"""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.geometry import apply_affine
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, make_case
from jaxmark.data.scans import Scan, read_scan, search_below
from jaxmark.inference.model import TrainedModel
from jaxmark.system.errors import InputError
from jaxmark.workflow import load_model

# Column -> words of the doubts that count there; the first column that fits.
COLUMNS = {
    "refused": ("probably not such a scan",),
    "intensities": ("intensities unlike",),
    "evidence": ("the network sees less",),
    "field of view": ("a field of view of",),
    "voxels": ("voxels of",),
    "overlap": ("of the prepared volume",),
    "shape": ("are arranged as", "lie as if", "exchanged", "other landmarks make it unlikely"),
    "outside": ("outside of the scan",),
    "not read": ("not read",),
    "other": ("",),
}


def doubts(model: TrainedModel, scans: Iterable[Scan]) -> Iterator[list[str]]:
    """What is doubtful about each scan; one that cannot be prepared has a single doubt."""
    for scan in scans:
        try:
            yield list(model.predict(scan.voxels, scan.ijk_to_lps, "LPS").doubts)
        except InputError as error:
            yield [f"not read: {error}"]


def people(phantom: CirclePhantom, count: int, seed: int, **changes: Any) -> Iterator[Scan]:
    """Scans of people that no cohort of seed 0 holds."""
    settings = dataclasses.replace(phantom, seed=seed, **changes)
    for number in range(count):
        case = make_case(settings, number)
        yield Scan(case.voxels.astype(np.float32), case.ijk_to_lps)


def masks(phantom: CirclePhantom, count: int, seed: int) -> Iterator[Scan]:
    """Vessels, 0 or 1."""
    for number in range(count):
        case = make_case(dataclasses.replace(phantom, seed=seed), number)
        yield Scan((case.lumen.segment > 0).astype(np.float32), case.ijk_to_lps)


def scaled(scans: Iterable[Scan], factor: float) -> Iterator[Scan]:
    """As if the header's millimetres were wrong."""
    for scan in scans:
        yield Scan(scan.voxels, np.diag([factor, factor, factor, 1.0]) @ scan.ijk_to_lps)


def moved_by(scan: Scan, way_mm: float, axis: int) -> Scan:
    """As if it lay elsewhere."""
    matrix = scan.ijk_to_lps.copy()
    matrix[axis, 3] += way_mm
    return Scan(scan.voxels, matrix)


def centred(scan: Scan, centre_mm: np.ndarray) -> Scan:
    """With its middle there."""
    matrix = scan.ijk_to_lps.copy()
    middle = (np.array(scan.voxels.shape) - 1) / 2
    matrix[:3, 3] += centre_mm - apply_affine(matrix, middle)
    return Scan(scan.voxels, matrix)


def kinds(
    model: TrainedModel, phantom: CirclePhantom, good: int, bad: int, folders: list[Path]
) -> Iterator[tuple[str, Iterable[Scan]]]:
    """Name and scans of every row."""
    yield "good: people never seen", people(phantom, good, 101)
    yield "good: all with stenoses or aneurysms", people(phantom, bad, 102, pathology=1.0)
    # What is wrong with the others is to be seen by all that a scan can hold.
    phantom = dataclasses.replace(phantom, views=("whole",))
    for modality in sorted({"MRA", "CTA"} - {phantom.modality}):
        yield f"phantoms as {modality}", people(phantom, bad, 103, modality=modality)
    yield "vessel masks", masks(phantom, bad, 104)
    rng = np.random.default_rng(0)
    noise = (
        Scan(rng.standard_normal(s.voxels.shape).astype(np.float32), s.ijk_to_lps)
        for s in people(phantom, bad, 105)
    )
    yield "noise", noise
    shuffled = (
        Scan(rng.permutation(s.voxels.ravel()).reshape(s.voxels.shape), s.ijk_to_lps)
        for s in people(phantom, bad, 105)
    )
    yield "voxels shuffled", shuffled
    for factor in (0.5, 0.75, 1.2, 1.5, 2.0):
        yield f"{factor:g} times as large", scaled(people(phantom, bad, 106), factor)
    flipped = (Scan(s.voxels[:, :, ::-1], s.ijk_to_lps) for s in people(phantom, bad, 107))
    yield "upside down", flipped
    mirrored = (Scan(s.voxels[::-1], s.ijk_to_lps) for s in people(phantom, bad, 107))
    yield "right and left exchanged", mirrored
    for axis, name in enumerate("xyz"):
        moved = (moved_by(s, 40.0, axis) for s in people(phantom, bad, 108))
        yield f"header 40 mm off along {name}", moved
    shape = (np.array(model.frame.shape) - 1) / 2
    centre_mm = apply_affine(model.frame.grid_to_common, shape)
    for folder in folders:
        files = [folder] if folder.is_file() else list(search_below(folder).scans.values())
        yield f"{folder.name}, as they lie", map(read_scan, files)
        yield f"{folder.name}, centred", (centred(read_scan(file), centre_mm) for file in files)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="work dir of a model of phantoms")
    parser.add_argument("--good", type=int, default=300, help="scans for the false alarms")
    parser.add_argument("--bad", type=int, default=20, help="scans of each other kind")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="other scans")
    arguments = parser.parse_args()
    model = load_model(arguments.checkpoint)
    if model.experiment.phantom is None:
        raise SystemExit(f"{arguments.checkpoint} is no model of phantoms")
    print("| scans | doubted | of these: " + " | ".join(COLUMNS) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    rows = kinds(model, model.experiment.phantom, arguments.good, arguments.bad, arguments.folder)
    for name, scans in rows:
        found = list(doubts(model, scans))
        count = Counter(column for lines in found for column in {_column(line) for line in lines})
        doubted = sum(bool(lines) for lines in found)
        cells = [count[column] for column in COLUMNS]
        share = f"{doubted} of {len(found)}"
        print(f"| {name} | {share} | " + " | ".join(map(str, cells)) + " |", flush=True)


def _column(doubt: str) -> str:
    return next(c for c, words in COLUMNS.items() if any(word in doubt for word in words))


if __name__ == "__main__":
    main()
