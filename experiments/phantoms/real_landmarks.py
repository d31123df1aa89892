"""The real landmarks that the phantom is fitted to and compared with.

Those of 560 people in four cohorts of TOF-MRA, derived from clatfd/GNN-ART-LABEL (Chen et al.,
MICCAI 2020; Apache-2.0): an .npz with `xyz_lps_mm` (N, 14, 3), NaN where absent, and `names`.

python -m experiments.phantoms.real_landmarks --landmarks=cow_landmarks.npz --output=real.csv

writes those that `COW19` has as an unpaired cohort (`config.data.unpaired`): 13 of its 19, many of
them absent, each set in its own scanner's frame.
"""

from pathlib import Path

import numpy as np
from absl import app, flags

from jaxmark.core.anatomy import COW19
from jaxmark.data.landmarks import write_table
from jaxmark.data.phantoms.cow.shape import VERTEBRAL

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


def main(_: list[str]) -> None:
    """Write the table."""
    shapes, names = read_real(Path(flags.FLAGS.landmarks))
    people = {
        f"real-{number:03d}": {
            name: xyz
            for name, xyz in zip(names, shape, strict=True)
            if name in COW19.landmarks and np.isfinite(xyz).all()
        }
        for number, shape in enumerate(shapes)
    }
    # Fewer points don't tell how a head lies.
    people = {case: points for case, points in people.items() if len(points) >= 4}
    write_table(Path(flags.FLAGS.output), people)
    print(f"{sum(map(len, people.values()))} landmarks of {len(people)} people")


if __name__ == "__main__":
    flags.DEFINE_string("landmarks", None, "The .npz file.", required=True)
    flags.DEFINE_string("output", None, "The .csv file to write.", required=True)
    app.run(main)
