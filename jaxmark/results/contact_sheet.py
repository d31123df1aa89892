"""The aligned cohort at a glance: all prepared cases side by side, with the same marks.

Each case shows the cohort's mean landmarks, its own landmarks, and its label map if the method
learns from it.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import PreparedCase
from jaxmark.data.cohort import SPLITS
from jaxmark.data.prepare import Prepared
from jaxmark.results.figures import pictures
from jaxmark.system.files import replacing, write_text_atomic
from jaxmark.system.parallel import parallel, worker_pool

TABLE = "cases.csv"
# Sheets with more cases would be too small to see, and too large to open.
_CASES_A_SHEET = 60
# A larger cohort is drawn up to this number, unless `everything` is set.
MOST_CASES = 200
_SHEETS_WORTH_PROCESSES = 4
_BACKGROUND, _BRIGHT = 5, 99.9


def write_contact_sheets(
    prepared: Prepared, folder: Path, *, everything: bool = True, workers: int = 1
) -> list[Path]:
    """Write `cases.csv` and `contact_sheet_<n>.png` of the prepared cohort; doubtful cases first.

    Existing sheets of the same table are not drawn again.

    Args:
      everything: draw all cases; else at most `MOST_CASES`.
      workers: processes that draw; 0: one for each CPU core.
    """
    names = [name for split in SPLITS for name in prepared.splits[split]]
    doubtful = prepared.doubts()
    order = [name for name in names if name in doubtful] + [n for n in names if n not in doubtful]
    shown = order if everything else order[:MOST_CASES]
    pages = [shown[i : i + _CASES_A_SHEET] for i in range(0, len(shown), _CASES_A_SHEET)]
    sheets = [folder / f"contact_sheet_{number}.png" for number in range(1, len(pages) + 1)]
    table = prepared.table()
    file = folder / TABLE
    if file.exists() and file.read_bytes() == table.encode() and sheets[-1].exists():
        return sheets
    file.unlink(missing_ok=True)
    spacing_mm = np.linalg.norm(prepared.frame.grid_to_common[:3, :3], axis=0).tolist()
    marks = _mean_landmarks(prepared.split("train"))
    if (chunks := prepared.cases[names[0]].chunks) is not None:
        # Large images are drawn in their coarse form.
        spacing_mm = [chunks.overview_factor * length for length in spacing_mm]
        marks = (marks + 0.5) / chunks.overview_factor - 0.5
    count = f"{len(shown):,} of {len(names):,}" if len(shown) < len(names) else f"{len(names):,}"
    jobs = [
        _Sheet(
            path=path,
            cases=[(prepared.cases[name], name in doubtful) for name in page],
            spacing_mm=spacing_mm,
            marks=marks,
            title=f"{count} prepared cases, sheet {number} of {len(pages)}",
        )
        for number, (path, page) in enumerate(zip(sheets, pages, strict=True), start=1)
    ]
    # Starting processes takes as long as drawing a few sheets.
    with worker_pool(workers if len(jobs) >= _SHEETS_WORTH_PROCESSES else 1, len(jobs)) as pool:
        if len(jobs) < _SHEETS_WORTH_PROCESSES:
            for job in jobs:
                _draw(job)
        else:
            parallel(pool, _draw, jobs, "drawing contact sheets", unit="sheet")
    # Written last: the table shows that the sheets are whole.
    write_text_atomic(file, table)
    return sheets


@dataclasses.dataclass(frozen=True)
class _Sheet:
    path: Path
    # Cases, each with whether it is doubtful.
    cases: list[tuple[PreparedCase, bool]]
    spacing_mm: list[float]
    marks: np.ndarray
    title: str


def _draw(sheet: _Sheet) -> None:
    tiles = [_tile(case, doubtful) for case, doubtful in sheet.cases]
    with replacing(sheet.path) as temporary:
        temporary.write_bytes(
            pictures.contact_sheet(tiles, sheet.spacing_mm, sheet.marks, sheet.title)
        )


def _tile(case: PreparedCase, doubtful: bool) -> pictures.Tile:
    image, place = case.volume.overview()
    image = image.astype(np.float32)
    low, high = np.percentile(image[::2, ::2, ::2], [_BACKGROUND, _BRIGHT])
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    quality = "" if np.isnan(case.quality) else f"  {case.quality:.3f}"
    name = case.name if len(case.name) <= 24 else case.name[:23] + "…"
    # A point far outside would lie on the next case.
    ijk = apply_affine(np.linalg.inv(place), case.landmarks_mm)
    inside = ((ijk >= -0.5) & (ijk <= np.array(image.shape) - 0.5)).all(-1, keepdims=True)
    own = np.where(inside, ijk, np.nan)
    tile = pictures.Tile(
        f"{name}{quality}",
        image.max(2),
        image.max(1) if image.shape[2] > 1 else None,
        doubtful,
        own,
        registered=bool(quality),
    )
    if case.segments is None or case.segments.file is None:
        return tile
    labels = case.segments.label_map()
    views = pictures.seen_labels(labels, 2), pictures.seen_labels(labels, 1)
    return dataclasses.replace(tile, labels=views, segments=len(case.segments.present))


def _mean_landmarks(train: list[PreparedCase]) -> np.ndarray:
    """(K', 3) voxels: the means of the landmarks that any training case has."""
    ijk = np.stack([case.landmarks_ijk for case in train])
    seen = np.isfinite(ijk).all(-1)
    total = np.where(seen[..., None], ijk, 0).sum(0)
    return (total / np.maximum(seen.sum(0), 1)[:, None])[seen.any(0)]
