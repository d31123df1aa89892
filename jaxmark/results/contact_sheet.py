"""The aligned cohort at a glance: every prepared case beside the others, with the same marks.

Beside the mean landmarks a case's own are drawn: where it is annotated, and where others are.
"""

from pathlib import Path

import numpy as np

from jaxmark.data.cases import PreparedCase
from jaxmark.data.cohort import SPLITS
from jaxmark.data.prepare import Prepared
from jaxmark.results import figures
from jaxmark.system.files import replacing, write_text_atomic

TABLE = "cases.csv"
# More would be too small to see, and too large to open.
_CASES_A_SHEET = 60
_BACKGROUND, _BRIGHT = 5, 99.9


def write_contact_sheets(prepared: Prepared, folder: Path) -> list[Path]:
    """Write `cases.csv` and `contact_sheet_<n>.png` of the prepared cohort; doubtful cases first.

    Sheets that are there and belong to the same table are not drawn again.
    """
    names = [name for split in SPLITS for name in prepared.splits[split]]
    doubtful = prepared.doubts()
    order = [name for name in names if name in doubtful] + [n for n in names if n not in doubtful]
    pages = [order[i : i + _CASES_A_SHEET] for i in range(0, len(order), _CASES_A_SHEET)]
    sheets = [folder / f"contact_sheet_{number}.png" for number in range(1, len(pages) + 1)]
    table = prepared.table()
    file = folder / TABLE
    if file.exists() and file.read_bytes() == table.encode() and sheets[-1].exists():
        return sheets
    file.unlink(missing_ok=True)
    spacing_mm = np.linalg.norm(prepared.frame.grid_to_common[:3, :3], axis=0).tolist()
    marks = _mean_landmarks(prepared.split("train"))
    for number, (path, page) in enumerate(zip(sheets, pages, strict=True), start=1):
        tiles = [_tile(prepared.cases[name], name in doubtful) for name in page]
        title = (
            f"{len(names)} prepared cases, sheet {number} of {len(pages)}; blue dots: mean "
            "landmarks, yellow rings: the case's own, red frame: doubtful (see cases.csv)"
        )
        with replacing(path) as temporary:
            temporary.write_bytes(figures.contact_sheet(tiles, spacing_mm, marks, title))
    # Last: it says that the sheets are whole.
    write_text_atomic(file, table)
    return sheets


def _tile(case: PreparedCase, doubtful: bool) -> figures.Tile:
    image = case.image().astype(np.float32)
    low, high = np.percentile(image[::2, ::2, ::2], [_BACKGROUND, _BRIGHT])
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    quality = "" if np.isnan(case.quality) else f"  {case.quality:.3f}"
    name = case.name if len(case.name) <= 24 else case.name[:23] + "…"
    # A point far outside would lie on the next case.
    ijk = case.landmarks_ijk
    inside = ((ijk >= -0.5) & (ijk <= np.array(image.shape) - 0.5)).all(-1, keepdims=True)
    own = np.where(inside, ijk, np.nan)
    return figures.Tile(f"{name}{quality}", image.max(2), image.max(1), doubtful, own)


def _mean_landmarks(train: list[PreparedCase]) -> np.ndarray:
    """(K', 3) voxels: of the landmarks that any training case has."""
    ijk = np.stack([case.landmarks_ijk for case in train])
    seen = np.isfinite(ijk).all(-1)
    total = np.where(seen[..., None], ijk, 0).sum(0)
    return (total / np.maximum(seen.sum(0), 1)[:, None])[seen.any(0)]
