"""Table 1 of Tan et al. (2019): the first stage by patches, as a whole, and both stages.

python -m experiments.cascade_table --preset=small

trains, evaluates and compares all rows on the same splits of synthetic CT angiograms of the heart,
one after the other. Finished rows are not run again, and a stopped row continues. `small` (voxels
of 1.6 mm) is for a CPU, `paper` (75 scans of 512^3 voxels) for a GPU.

- `Patch-based`: the first stage alone, on patches of the full resolution; in the 500 steps of
  `small` it learns nothing
- `Entire-image`: the first stage alone, on the whole coarse scan; voxel of the maximum
- `Two-stage`: both stages, the paper's method; the other rows are compared with it
- `Ours`: cross-entropies in place of the weighted squared error and of the displacement
- `Ours-first`: the first stage of `Ours` alone; sub-voxel position

`landmarks.csv` has the errors of each landmark, and below them those of the paper and of Noothout
et al. (2018) as the paper quotes them, both on other scans. A single row, and the gain of its
second stage by one look and by two, with a picture:

python -m jaxmark.main --config=experiments/cascade_table.py:small/Two-stage
python -m experiments.cascade_stages --workdir=runs/cascade_table_small/Two-stage-0 --looks=2
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from experiments import vessel_cascade
from experiments.tables import Table
from jaxmark.config import Experiment
from jaxmark.data.phantoms.vessels.coronaries import CORONARY5
from jaxmark.system.files import write_text_atomic

# Table 1 of the paper, mm, in its order of landmarks; None: not stated. The table has numbers
# instead of names, which follow from the text: patches do better at the left ostium and the
# commissure (2 and 5), the whole image at the right ostium and the left main bifurcation (3 and 4).
PAPER_ORDER = (
    "apex",
    "left coronary ostium",
    "right coronary ostium",
    "left main bifurcation",
    "non-coronary commissure",
)
PAPER: dict[str, tuple[float | None, ...]] = {
    "Patch-based": (3.14, 1.45, 8.43, 17.12, 1.12),
    "Entire-image": (3.18, 4.79, 3.23, 6.17, 2.60),
    "Two-stage": (2.58, 1.48, 1.37, 3.51, 1.46),
    "Noothout et al. (2018)": (None, 2.88, 2.19, 3.78, 2.10),
}
NOOTHOUT = "Noothout et al. (2018)"

# Row -> changes of the settings of `Two-stage`.
CHANGES: dict[str, dict[str, Any]] = {
    "Patch-based": {"refine_steps": 0},
    "Entire-image": {"refine_steps": 0},
    "Two-stage": {},
    "Ours": {},
    "Ours-first": {"refine_steps": 0},
}
REFERENCE = "Two-stage"
# The patches that the first stage of `Patch-based` sees; a Gaussian must fit into one.
FIRST_PATCH: dict[str, dict[str, Any]] = {
    "paper": {"first_patch": 48},
    "small": {"first_patch": 16, "sigma_mm": 4.0},
    "tiny": {"first_patch": 8},
}
# Decoder of a row, if not that of the last stage.
DECODERS = {"Patch-based": "stage1", "Entire-image": "stage1", "Ours-first": "stage1_subvoxel"}

# Losses of stage 1 and stage 2.
LOSSES: dict[str, dict[str, Any]] = {
    "printed": {"weights": "prediction", "refine": "displacement"},
    "ours": {"weights": "cross_entropy", "refine": "heatmap"},
}
# Settings of the rows as printed, for sizes whose experiment has our losses: the paper's four
# convolutions, and Gaussians (the paper states none) from which the squared error learns in so few
# steps.
PRINTED: dict[str, dict[str, Any]] = {
    "small": {"refine_widths": (16, 32, 64, 64), "sigma_mm": 12.0, "height": 3.0}
}

SIZES: dict[str, Callable[[], Experiment]] = {
    "paper": vessel_cascade.paper,
    "small": vessel_cascade.small,
    "tiny": vessel_cascade.tiny,
}
TABLE = Table(
    name="cascade_table",
    sizes=SIZES,
    rows=tuple(CHANGES),
    reference=REFERENCE,
    note="Synthetic CT angiograms, the same splits for all rows. The paper's means, of 40 scans of "
    "its own: 6.25 mm by patches, 3.99 mm the entire image, 2.08 mm two stages.",
    published={},
)


def get_config(preset: str = "small/Two-stage") -> Experiment:
    """`SIZE/ROW`; ValueError for one that does not exist."""
    size, row = TABLE.split(preset)
    experiment = SIZES[size]()
    ours = row.startswith("Ours")
    changes = {**LOSSES["ours" if ours else "printed"], **CHANGES[row]}
    if not ours:
        changes |= PRINTED.get(size, {})
    if row == "Patch-based":
        changes |= FIRST_PATCH[size]
    experiment.method = dataclasses.replace(experiment.method, **changes)
    experiment.predict.decoder = DECODERS.get(row, "subvoxel")
    experiment.name = f"cascade_table_{size}_{row.lower()}"
    return experiment


def main(argv: Sequence[str]) -> None:
    """See `Table.run`; then the errors of each landmark, `landmarks.csv`."""
    folder, rows = TABLE.run(argv, f"Table 1, {flags.FLAGS.preset}")
    text = by_landmark({row.label: row.error_mm for row in rows})
    write_text_atomic(folder / "landmarks.csv", text)
    print(text, end="")


def by_landmark(errors_mm: Mapping[str, np.ndarray]) -> str:
    """CSV: mean radial error and its SD over scans, of each landmark; then the paper's means.

    `errors_mm`: row -> (N, 5), NaN where absent.
    """
    lines = [",".join(["row", *(f"{name} (mm)" for name in CORONARY5.landmarks), "mean (mm)"])]
    for row, errors in errors_mm.items():
        means, spreads = np.nanmean(errors, axis=0), np.nanstd(errors, axis=0)
        cells = [f"{m:.2f} ({s:.2f})" for m, s in zip(means, spreads, strict=True)]
        lines.append(",".join([row, *cells, f"{np.nanmean(errors):.2f}"]))
    for row, means_mm in PAPER.items():
        of = dict(zip(PAPER_ORDER, means_mm, strict=True))
        named = [of[name] for name in CORONARY5.landmarks]
        cells = ["" if value is None else f"{value:.2f}" for value in named]
        known = [value for value in means_mm if value is not None]
        mean = f"{np.mean(known):.2f}" if len(known) == len(means_mm) else ""
        name = row if row == NOOTHOUT else f"{row} (in the paper)"
        lines.append(",".join([name, *cells, mean]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.define_flags()
    app.run(main)
