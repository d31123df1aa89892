"""The ablation of Tan et al. (ISBI 2022): which tasks help to find the landmarks.

python -m experiments.cow_multitask --preset=small

trains, evaluates and compares all rows on the same splits, one after the other. Finished rows are
not run again, and a stopped row continues. `small` is for a CPU, `paper` (50 training and
20 test scans of 192 x 160 x 96 voxels, half of the people with stenoses or aneurysms, as in the
paper's two cohorts; 150 epochs) for a GPU. Each row adds one task to the row before:

- `Heatmaps`: landmarks alone
- `Segmentation`: adds the segments
- `Forks`: adds at which landmarks arteries fork
- `Segments`: adds which segments exist
- `Multitask`: adds the agreement of the two classifications; the paper's method
- `Evidence`: adds the segmentation's evidence as input of the classifications (ours)
- `Orientation`: the comparator, segmentation and the direction of the vessels

Beside the table, `pathology.csv` has the errors of people with and without stenoses and aneurysms,
the paper's two test sets. `--pathology=0` is for a cohort without any, `--pathology=1` for one
with stenoses or aneurysms in everyone. A row by itself:

python -m jaxmark.main --config=experiments/cow_multitask.py:small/Multitask
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from experiments import cow
from experiments.tables import Table
from jaxmark.config import Augment, Data, Experiment, Train
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, has_pathology
from jaxmark.methods.multitask import Multitask
from jaxmark.results.compare import Row
from jaxmark.system.files import write_text_atomic

# Row -> settings of the tasks that it does not have.
OFF: dict[str, tuple[str, ...]] = {
    "Heatmaps": (
        "segmentation",
        "label_cross_entropy",
        "fork_attributes",
        "segment_attributes",
        "consistency",
    ),
    "Segmentation": ("fork_attributes", "segment_attributes", "consistency"),
    "Forks": ("segment_attributes", "consistency"),
    "Segments": ("consistency",),
    "Multitask": (),
    "Evidence": (),
    "Orientation": ("fork_attributes", "segment_attributes", "consistency"),
}
PATHOLOGY = 0.5  # share of the paper's cohorts together


def paper() -> Experiment:
    """The size and settings of the paper; its weights of the tasks are not known."""
    experiment = cow.paper()
    experiment.phantom = CirclePhantom(train=50, val=10, test=20, unpaired=0, pathology=PATHOLOGY)
    experiment.method = Multitask()
    return experiment


def small() -> Experiment:
    """For a CPU; values set here are ours, chosen on phantoms' validation cases."""
    spacing_mm = (1.4, 1.4, 1.6)
    experiment = cow.small()
    experiment.data = Data(spacing_mm=spacing_mm, crop=(56, 48, 40), margin=4)
    experiment.phantom = CirclePhantom(
        train=40,
        val=30,
        test=32,
        spacing_mm=spacing_mm,
        shape=(66, 58, 50),
        unpaired=0,
        pathology=PATHOLOGY,
    )
    experiment.method = Multitask(
        steps=600,
        widths=(16, 32, 64),
        coordinates=True,
        sigma_mm=2.0,
        heatmap_loss="cross_entropy",
        balance=0.5,
        segmentation=3.0,
        label_cross_entropy=3.0,
        fork_attributes=1.0,
        segment_attributes=1.0,
        consistency=0.3,
        rare=2.0,
        learning_rate=1e-3,
        decay=0.5,
    )
    experiment.augment = Augment(translation_voxels=4, rotation_degrees=5, scale=0.05)
    return experiment


def tiny() -> Experiment:
    """For tests."""
    experiment = cow.tiny()
    experiment.phantom = dataclasses.replace(experiment.phantom, unpaired=0)
    experiment.method = dataclasses.replace(small().method, steps=6, widths=(4, 8), head=4)
    experiment.train = Train(batch=1, log_every=2, validate_every=3)
    return experiment


SIZES: dict[str, Callable[[], Experiment]] = {"paper": paper, "small": small, "tiny": tiny}
TABLE = Table(
    name="cow_multitask",
    sizes=SIZES,
    rows=tuple(OFF),
    reference="Heatmaps",
    note="Synthetic scans, the same splits for all rows; the paper prints errors in a figure "
    "alone. Its Dice is 54.25 %, its accuracies 88.95 % (landmarks) and 97.25 % (segments), of "
    "other data.",
    published={},
)


def get_config(preset: str = "small/Multitask") -> Experiment:
    """`SIZE/ROW`; ValueError for one that does not exist."""
    size, row = TABLE.split(preset)
    experiment = SIZES[size]()
    off: dict[str, Any] = dict.fromkeys(OFF[row], 0.0)
    if row == "Orientation":
        off["orientation"] = 0.1
    if row == "Evidence":
        off["attributes_from"] = "labels"
    experiment.method = dataclasses.replace(experiment.method, **off)
    experiment.name = f"cow_multitask_{size}_{row.lower()}"
    return experiment


def main(argv: Sequence[str]) -> None:
    """See `Table.run`; then the errors of people with and without pathology, `pathology.csv`."""
    values = flags.FLAGS
    share = values.pathology
    folder, rows = TABLE.run(
        argv,
        f"Tasks, {values.preset}" + ("" if share is None else f", pathology {share:g}"),
        suffix="" if share is None else f"_pathology{share:g}",
        always=[] if share is None else [f"--config.phantom.pathology={share}"],
    )
    phantom = SIZES[values.preset]().phantom
    if share is not None:
        phantom.pathology = share
    text = by_pathology(phantom, rows)
    write_text_atomic(folder / "pathology.csv", text)
    print(text, end="")


def by_pathology(phantom: CirclePhantom, rows: Sequence[Row]) -> str:
    """CSV: mean radial error of each row's runs, for people without and with pathology."""
    lines = ["row,scans_without,mre_mm_without,scans_with,mre_mm_with"]
    for row in rows:
        numbers = [int(case.removeprefix("phantom-")) for case in row.cases]
        ill = np.array([has_pathology(phantom, number) for number in numbers])
        cells = [
            f"{group.sum()},{np.nanmean(row.error_mm[group]):.3f}" if group.any() else "0,"
            for group in (~ill, ill)
        ]
        lines.append(",".join([row.label, *cells]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.define_flags()
    flags.DEFINE_float("pathology", None, f"Share of people with any; the preset's: {PATHOLOGY}.")
    app.run(main)
