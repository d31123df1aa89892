"""Every row of Table 1 of Tan et al. (ISBI 2023) on the same splits, beside the paper's figures.

python -m experiments.cow_table1 --preset=small

trains, evaluates and compares all rows, one after the other. Finished rows are not run again, and a
stopped row continues. `small` is for a CPU, `paper` (70 scans of 192 x 160 x 96 voxels,
20,000 + 20,000 steps a row) for a GPU. Rows "Payer" and "Noothout" are the methods that the paper
compares with, `scn` and `noothout`. A single row, as on a cluster, and then the table of finished
rows:

python -m jaxmark.main --config=experiments/cow_table1.py:small/D-MRA --workdir=FOLDER/D-MRA-0
python -m experiments.cow_table1 --preset=small --rows=Baseline,D-MRA --workdir=FOLDER

--real_landmarks=FILE.csv adds a row whose unpaired cohort is that file: real people's landmarks,
each set in its scanner's frame (`experiments/phantoms/real_landmarks.py`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from experiments import cow
from experiments.tables import Table
from jaxmark.config import Experiment
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import SpatialConfiguration
from jaxmark.results.compare import Published

# Table 1 of the paper: MRE (SD) in mm, and SDR in % at 2, 3, 4, 5 and 6 mm.
PAPER: dict[str, Published] = {
    "Baseline": {"mre_mm": 3.08, "sd_mm": 1.80, "sdr": [82.40, 85.69, 88.82, 90.13, 91.12]},
    "D-MRA": {"mre_mm": 1.88, "sd_mm": 1.19, "sdr": [82.89, 89.64, 92.60, 94.41, 95.23]},
    "D-MRA-dagger": {"mre_mm": 1.73, "sd_mm": 1.01, "sdr": [85.53, 90.46, 93.59, 94.24, 95.23]},
    "D-MRA-CTA": {"mre_mm": 1.53, "sd_mm": 0.89, "sdr": [86.02, 90.79, 93.75, 95.07, 95.56]},
    "D-MRA-CTA-dagger": {
        "mre_mm": 1.45,
        "sd_mm": 0.72,
        "sdr": [86.18, 91.61, 93.75, 95.56, 96.22],
    },
    "75%": {"mre_mm": 1.83, "sd_mm": 1.34, "sdr": [83.22, 89.31, 92.93, 94.41, 95.07]},
    "50%": {"mre_mm": 2.23, "sd_mm": 1.22, "sdr": [79.11, 87.01, 90.63, 92.43, 93.75]},
    "Payer": {"mre_mm": 1.83, "sd_mm": 0.66, "sdr": [75.82, 84.05, 89.80, 92.76, 95.23]},
    "Noothout": {"mre_mm": 2.10, "sd_mm": 0.39, "sdr": [57.24, 79.61, 92.11, 95.39, 97.04]},
}
ROWS = tuple(PAPER)
REFERENCE = "Baseline"
# Rows that the paper does not have: D with the other kind of input than the size's rows, real
# people's landmarks in place of synthetic ones, and Payer's later recipe.
HEATMAPS, CELLS = "D-MRA-CTA-dagger-heatmaps", "D-MRA-CTA-dagger-cells"
REAL = "D-MRA-real-dagger"
LATER = "Payer-later"
EXTRA = (HEATMAPS, CELLS, LATER, REAL)


def tiny() -> Experiment:
    """For tests."""
    method = Adversarial(
        steps=3,
        adversarial_steps=3,
        widths=(4, 8),
        head=4,
        discriminator_widths=(4, 8),
        discriminator_hidden=8,
    )
    return dataclasses.replace(cow.tiny(), method=method)


# Values of the small sizes are ours, chosen on phantoms' validation cases; layers, losses and
# learned widths are the papers'. With Adam at 1e-3 the network of 2019 learned hardly anything.
SMALL_PAYER = SpatialConfiguration(
    steps=800,
    filters=16,
    levels=3,
    downsample=4,
    dropout=0.0,
    reflect=False,
    optimizer="adam",
    learning_rate=3e-4,
    final_rate=0.2,
    weight_decay=0.0,
    # Wide at first, with heights near 1.
    sigma_mm=5.0,
    sigma_rate=30.0,
    target_sum=400.0,
    sigma_penalty=16.0,
)
SMALL_LATER = SpatialConfiguration(
    recipe="later",
    steps=800,
    filters=16,
    levels=3,
    downsample=4,
    spatial_levels=2,
    dropout=0.0,
    learning_rate=1e-3,
    final_rate=0.2,
    sigma_mm=4.0,
)
SMALL_NOOTHOUT = RegressionClassification(
    steps=1500,
    local_steps=1500,
    widths=(32, 64, 128, 128),
    blocks=(2, 2, 2, 2),
    head=64,
    local_learning_rate=3e-3,
    decay=0.5,
)
BASELINES: dict[str, dict[str, Any]] = {
    "Payer": {
        "paper": SpatialConfiguration(),
        "small": SMALL_PAYER,
        "tiny": dataclasses.replace(SMALL_PAYER, steps=3, filters=4, levels=2),
    },
    LATER: {
        "paper": SpatialConfiguration(recipe="later"),
        "small": SMALL_LATER,
        "tiny": dataclasses.replace(SMALL_LATER, steps=3, filters=4, levels=2, spatial_levels=1),
    },
    "Noothout": {
        # Whole volumes: 72 voxels were 108 mm there, and would be 37 mm here.
        "paper": RegressionClassification(chunk=192),
        "small": SMALL_NOOTHOUT,
        "tiny": dataclasses.replace(
            SMALL_NOOTHOUT,
            steps=3,
            local_steps=3,
            widths=(4, 4),
            blocks=(1, 1),
            head=4,
            local_widths=(4, 4),
        ),
    },
}


SIZES: dict[str, Callable[[], Experiment]] = {
    "paper": cow.paper,
    "small": cow.small_adversarial,
    "tiny": tiny,
}


TABLE = Table(
    name="cow_table1",
    sizes=SIZES,
    rows=ROWS,
    reference=REFERENCE,
    note="Synthetic scans, the same splits for all rows; beside it the paper's figures, of other "
    "data.",
    published=PAPER,
    extra=EXTRA,
)


def get_config(preset: str = "small/D-MRA-CTA-dagger") -> Experiment:
    """`SIZE/ROW`; ValueError for one that does not exist."""
    size, row = TABLE.split(preset)
    experiment = SIZES[size]()
    full = experiment.method
    experiment.name = f"cow_table1_{size}_{row.lower().replace('%', '')}"
    if row in BASELINES:
        experiment.method = dataclasses.replace(BASELINES[row][size])
        return experiment
    if row == REFERENCE:
        shared = {f.name: getattr(full, f.name) for f in dataclasses.fields(HeatmapRegression)}
        # As many steps of the generator as the other rows have.
        shared["steps"] = full.steps + full.adversarial_steps
        experiment.method = HeatmapRegression(**shared)
        return experiment
    experiment.method = dataclasses.replace(
        full,
        real="images" if row in ("D-MRA", "D-MRA-dagger") else "both",
        positions=row not in ("D-MRA", "D-MRA-CTA"),
    )
    if row.endswith("%"):
        experiment.data.train_fraction = int(row[:-1]) / 100
    if row == REAL:
        experiment.data.unpaired_align = "rigid"
    if row in (HEATMAPS, CELLS):
        other = cow.HEATMAPS if row == HEATMAPS else cow.CELLS
        experiment.method = dataclasses.replace(experiment.method, **other)
    return experiment


def main(argv: Sequence[str]) -> None:
    """See `Table.run`."""
    values = flags.FLAGS
    real = values.real_landmarks
    TABLE.run(
        argv,
        f"Table 1, {values.preset}",
        more=[REAL] if real else [],
        hidden=[REAL],
        overrides={REAL: [f"--config.data.unpaired={real}"]},
    )


if __name__ == "__main__":
    TABLE.define_flags()
    flags.DEFINE_string("real_landmarks", None, "CSV of real people's landmarks: one row more.")
    app.run(main)
