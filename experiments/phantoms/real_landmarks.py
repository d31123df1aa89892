"""The real landmarks that the phantom is fitted to and compared with.

Those of 560 people in four cohorts of TOF-MRA, derived from clatfd/GNN-ART-LABEL (Chen et al.,
MICCAI 2020; Apache-2.0): an .npz with `xyz_lps_mm` (N, 14, 3), NaN where absent, and `names`.
"""

from pathlib import Path

import numpy as np

from jaxmark.data.phantom.shape import VERTEBRAL

# The data's names without their side, in the scheme's words.
_NAMES = {
    "ICA/MCA/ACA": "ICA terminus",
    "A1/A2": "A1/A2",
    "M1/M2": "M1/M2",
    "OA/ICA": "ICA/OA",
    "P1/P2/Pcomm": "P1/P2A",
    "Pcomm/ICA": "ICA/PCoA",
    "BA/VA": VERTEBRAL,
    "PCA/BA": "BA tip",
}


def read_real(file: Path) -> tuple[np.ndarray, list[str]]:
    """Landmarks (N, 14, 3) float64 mm, NaN where absent, and their names as in `COW19`."""
    arrays = np.load(file, allow_pickle=False)
    return arrays["xyz_lps_mm"].astype(np.float64), [_rename(str(n)) for n in arrays["names"]]


def mirrored_names(names: list[str]) -> np.ndarray:
    """(K,) index of each landmark's mirror image."""
    twin = {"L": "R", "R": "L"}
    return np.array(
        [names.index(n[:-1] + twin[n[-1]] if n[-2:] in (" L", " R") else n) for n in names]
    )


def _rename(name: str) -> str:
    """`M1/M2_L` -> `M1/M2 L`."""
    place, _, side = name.rpartition("_") if name[-2:] in ("_L", "_R") else (name, "", "")
    return f"{_NAMES[place]} {side}".strip()
