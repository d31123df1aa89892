"""Every method on the same splits: errors and costs.

    python -m experiments.compare --preset=small
    python -m experiments.compare --preset=mouse --root=FOLDER

trains, evaluates and compares one row after the other. Finished rows are not run again, and a
stopped row continues. `FOLDER/index.html` has errors, spreads, detection rates, confusion,
calibration, costs, tests of all pairs, and a summary in words; `table.csv` has the same figures.

Presets: `small` (phantoms; a CPU), `paper` (phantoms, 192 x 160 x 96 voxels; a GPU), `mouse` (few
real scans: the mouse heads of `experiments/mouse_ct.py`, or scans like them) and `tiny` (tests).
Rows:

- `Atlases`: registration, no learning (`experiments/atlases.py`)
- `Heatmaps`: U-Net and heatmaps, our losses; `Baseline`: with the papers' squared error
- `Adversarial`: Tan et al., 2023; on phantoms with another cohort's landmarks
- `Payer`: SpatialConfiguration-Net; `Noothout`: regression and classification
- `Multitask`: Tan et al., 2022; needs label maps, so not for `mouse`
- `Cascade`: Tan et al., 2019; `Anywhere`: a coarse network for the pose, then a fine one

The cardiac GAN is for pictures: `experiments/cardiac_table.py`. A row by itself:

    python -m jaxmark.main --config=experiments/compare.py:small/Cascade --workdir=WORKDIR
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments import (
    cow,
    cow_any,
    cow_multitask,
    cow_table1,
    mouse_ct,
    mouse_ct_cascade,
    vessel_cascade,
)
from experiments.atlases import Atlases, open_run
from experiments.commands import errors_on_one_line
from experiments.costs import Costs, of_run
from experiments.rows import Row
from experiments.tables import Table
from jaxmark.config import Experiment
from jaxmark.core import metrics
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.coarse_to_fine import CoarseToFine
from jaxmark.results.compare import Pair, pairs, pairs_table
from jaxmark.results.compare import Row as Compared
from jaxmark.results.compare import Table as Lines
from jaxmark.results.evaluate import unit_of
from jaxmark.results.page import mm, percent
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_text_atomic

REFERENCE = "Heatmaps"
ATLASES = "Atlases"
# Rows are shown to differ if their adjusted p is at most this.
_SIGNIFICANCE = 0.05


def mouse() -> Experiment:
    """Few real scans at any rotation: as `mouse_ct`, whose folder --root names."""
    return mouse_ct.get_config()


SIZES: dict[str, Callable[[], Experiment]] = {
    "small": cow.small_adversarial,
    "paper": cow.paper,
    "mouse": mouse,
    "tiny": cow_table1.tiny,
}
# Row -> size -> the method's settings; a row is only for the sizes listed. Values of the small
# sizes are ours, chosen on phantoms' validation cases.
METHODS: dict[str, dict[str, Any]] = {
    ATLASES: {
        "small": Atlases(),
        "paper": Atlases(),
        "mouse": Atlases(mesh_mm=4.0),
        "tiny": Atlases(atlases=2, mesh_mm=40.0, iterations=3),
    },
    REFERENCE: {
        "small": cow.small().method,
        "paper": dataclasses.replace(cow.small().method, steps=20_000, widths=(16, 32, 64, 128)),
        "mouse": mouse_ct.get_config().method,
        "tiny": cow.tiny().method,
    },
    "Baseline": {
        size: cow_table1.get_config(f"{size}/Baseline").method for size in cow_table1.SIZES
    },
    "Adversarial": {
        "small": cow.small_adversarial().method,
        "paper": cow.paper().method,
        "tiny": cow_table1.tiny().method,
    },
    "Payer": {
        **cow_table1.BASELINES["Payer"],
        # As many voxels of 0.35 mm as on phantoms.
        "mouse": dataclasses.replace(cow_table1.SMALL_PAYER, sigma_mm=1.0),
    },
    "Noothout": {**cow_table1.BASELINES["Noothout"], "mouse": cow_table1.SMALL_NOOTHOUT},
    "Multitask": {size: make().method for size, make in cow_multitask.SIZES.items()},
    "Cascade": {
        "small": Cascade(
            steps=400,
            refine_steps=600,
            factor=2,
            widths=(16, 32, 64),
            coordinates=True,
            weights="cross_entropy",
            sigma_mm=3.0,
            patch=16,
            reach_mm=6.0,
            refine="heatmap",
            refine_widths=(16, 32),
            refine_sigma_mm=2.0,
            refine_batch=2,
            shared=True,
            decay=0.5,
        ),
        "paper": Cascade(),
        "mouse": mouse_ct_cascade.get_config().method,
        "tiny": dataclasses.replace(
            vessel_cascade.tiny().method, reach_mm=10.0, refine="displacement", refine_batch=1
        ),
    },
    "Anywhere": {
        "small": CoarseToFine(
            steps=400,
            fine_steps=600,
            factor=2,
            widths=(16, 32, 64),
            crop=(56, 48, 40),
            spacing_mm=1.6,
            fine_widths=(16, 32, 64),
        ),
        "paper": CoarseToFine(steps=10_000, fine_steps=20_000, spacing_mm=0.75, crop=(112, 96, 80)),
        "tiny": dataclasses.replace(cow_any.tiny().method, fine_batch=1),
    },
}
TABLE = Table(
    name="compare",
    sizes=SIZES,
    rows=tuple(METHODS),
    reference=REFERENCE,
    note="The same splits for all rows. Times are of this machine; minutes are those of steps "
    "alone, without validation and compilation.",
    published={},
    programs={ATLASES: ("-m", "experiments.atlases")},
)


def get_config(preset: str = f"small/{REFERENCE}") -> Experiment:
    """`SIZE/ROW`; ValueError for one that does not exist."""
    size, row = TABLE.split(preset)
    if size not in METHODS[row]:
        raise ValueError(f"row {row} is not for {size}, but for {', '.join(METHODS[row])}")
    experiment = SIZES[size]()
    experiment.method = dataclasses.replace(METHODS[row][size])
    experiment.name = f"compare_{size}_{row.lower()}"
    if size == "mouse" and row == "Cascade":
        other = mouse_ct_cascade.get_config()
        experiment.data, experiment.augment = other.data, other.augment
        experiment.train = other.train
    if row == ATLASES and experiment.data.register == "none":
        experiment.data.register = "affine"
        # The headers agree.
        experiment.data.search_degrees = 30.0
    return experiment


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of the comparison with what it costs, of its first seed."""

    row: Compared
    costs: Costs


def measured(rows: Sequence[Row], found: Sequence[Compared]) -> list[Measured]:
    """The trained rows with their costs, which are measured if they are not yet."""
    by_label = {row.label: row for row in found}
    return [
        Measured(by_label[row.name], of_run(open_run(next(iter(row.homes.values())))))
        for row in rows
    ]


def beside(
    rows: Sequence[Row], found: Sequence[Compared], target_mm: float
) -> tuple[list[Lines], list[str], list[Measured]]:
    """Tables of calibration, costs and all pairs, and a summary in words."""
    all_rows = measured(rows, found)
    tests = pairs(found)
    unit = unit_of(found[0].summary)
    tables = [promises_table(all_rows, unit), costs_table(all_rows, target_mm, unit)]
    if tests:
        tables.append(pairs_table(tests, [row.label for row in found], unit))
    return tables, words(all_rows, tests, target_mm, unit), all_rows


def promises_table(rows: Sequence[Measured], unit: str) -> Lines:
    """Spreads, and how often radii held the truth."""
    head = ["", "SD of points", "SD of scans", "SD of landmarks", "radii held", "mean radius"]
    lines = []
    for one in rows:
        summary, kept = one.row.summary, one.row.summary.get("coverage")
        spreads = [mm(summary[f"sd_{of}_mm"]) for of in ("points", "scans", "landmarks")]
        held = [percent(kept["share"]), mm(kept["mean_radius_mm"])] if kept else ["–", "–"]
        lines.append([one.row.label, *spreads, *held])
    meaning = (
        f"Lengths in {unit}. Radii are stated for 90 % of points and calibrated on validation "
        "cases; where those are evaluated, radii cannot be judged."
    )
    return "Spread and calibration", meaning, head, lines


def costs_table(rows: Sequence[Measured], target_mm: float, unit: str) -> Lines:
    """The costs of training and prediction."""
    head = [
        *("", "parameters", "ms a step", "minutes of steps"),
        f"minutes to {target_mm:g} {unit} (validation)",
        *("step's memory (MB)", "volumes/s in prediction"),
    ]
    lines = [
        [
            one.row.label,
            f"{one.costs.parameters:,}",
            " + ".join(f"{1000 * s:.0f}" for s in one.costs.step_s) or "–",
            f"{one.costs.minutes:.1f}" if one.costs.step_s else "–",
            "–" if (found := one.costs.minutes_to(target_mm)) is None else f"{found:.1f}",
            "–" if one.costs.step_bytes is None else f"{one.costs.step_bytes / 1e6:.0f}",
            f"{one.costs.volumes_per_s:.3g}",
        ]
        for one in rows
    ]
    meaning = (
        "First seed. Milliseconds of a step in each phase of training. Memory: largest need of a "
        "step, by the compiler's count. Prediction: prepared volumes, without compilation."
    )
    return "Costs", meaning, head, lines


def words(
    rows: Sequence[Measured], tests: Sequence[Pair], target_mm: float, unit: str
) -> list[str]:
    """Lines that say which methods are best by these figures."""
    by_error = sorted(rows, key=lambda one: one.row.summary["mre_mm"])
    best = by_error[0]
    alike = {
        other
        for pair in tests
        for first, other in ((pair.first, pair.second), (pair.second, pair.first))
        if first == best.row.label and pair.p_value > _SIGNIFICANCE
    }
    lines = [f"Smallest error: {_with_error(best, unit)}."]
    scans = int(best.row.summary["n_scans"])
    if tests and metrics.smallest_p_value(scans) * len(tests) > _SIGNIFICANCE:
        lines.append(
            f"{scans} scans are too few for a test of {len(tests)} pairs, whatever they differ by: "
            "see the intervals of the differences."
        )
        alike = set()
    elif alike:
        listed = ", ".join(_with_error(one, unit) for one in by_error if one.row.label in alike)
        lines.append(f"Not shown to differ from it (adjusted p > {_SIGNIFICANCE}): {listed}.")
    good = [one for one in rows if one.row.label in alike | {best.row.label}]
    trained = [one for one in good if one.costs.step_s]
    if len(trained) > 1:
        quick = min(trained, key=lambda one: one.costs.minutes)
        small = min(trained, key=lambda one: one.costs.step_bytes or 0)
        fast = max(trained, key=lambda one: one.costs.volumes_per_s)
        lines += [
            f"Of these, least training: {quick.row.label} ({quick.costs.minutes:.1f} minutes of "
            f"steps); least memory: {small.row.label} "
            f"({(small.costs.step_bytes or 0) / 1e6:.0f} MB a step); fastest prediction: "
            f"{fast.row.label} ({fast.costs.volumes_per_s:.3g} volumes/s)."
        ]
    reached = [(m, one) for one in rows if (m := one.costs.minutes_to(target_mm)) is not None]
    if reached:
        minutes, first = min(reached, key=lambda pair: pair[0])
        lines.append(
            f"First at {target_mm:g} {unit} on validation cases: {first.row.label}, after "
            f"{minutes:.1f} minutes of steps."
        )
    for one in rows:
        if one.row.label == ATLASES:
            lines.append(f"Without any training: {_with_error(one, unit)}.")
        if one.row.segments:
            lines.append(f"Also predicts segments and variants: {_with_error(one, unit)}.")
    return lines


def _with_error(one: Measured, unit: str) -> str:
    return f"{one.row.label} ({one.row.summary['mre_mm']:.2f} {unit})"


def as_csv(rows: Sequence[Measured], target_mm: float) -> str:
    """All figures, one line for each row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    thresholds = list(rows[0].row.summary["sdr"])
    unit = unit_of(rows[0].row.summary)
    writer.writerow(
        [
            *("row", "scans", "points", f"mre_{unit}", f"median_{unit}"),
            *(f"sd_{of}_{unit}" for of in ("points", "scans", "landmarks")),
            *(f"sdr_{t}_{unit}" for t in thresholds),
            *("confusion", "radii_held", f"mean_radius_{unit}", "parameters", "step_s"),
            *("minutes", f"minutes_to_{target_mm:g}_{unit}", "step_bytes", "volumes_per_s"),
        ]
    )
    for one in rows:
        summary, costs = one.row.summary, one.costs
        kept = summary.get("coverage") or {}
        cells = [
            *(summary[name] for name in ("n_scans", "n_points", "mre_mm", "median_mm")),
            *(summary[f"sd_{of}_mm"] for of in ("points", "scans", "landmarks")),
            *(summary["sdr"][t] for t in thresholds),
            *(summary["confusion_rate"], kept.get("share"), kept.get("mean_radius_mm")),
            *(costs.parameters, "+".join(f"{s:.4f}" for s in costs.step_s), costs.minutes),
            *(costs.minutes_to(target_mm), costs.step_bytes, costs.volumes_per_s),
        ]
        writer.writerow([one.row.label, *("" if c is None else c for c in map(_short, cells))])
    return text.getvalue()


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def main(argv: Sequence[str]) -> None:
    """See above."""
    # Orbax logs each file that it reads.
    logging.set_verbosity(logging.FATAL)
    values: Any = flags.FLAGS
    size, table = values.preset, TABLE
    with errors_on_one_line():
        given = not values["rows"].using_default_value
        suited = [row for row in values.rows if size in METHODS.get(row, {size: None})]
        if given and suited != values.rows:
            (first, *_) = [row for row in values.rows if row not in suited]
            raise InputError("--rows", f"{first} is not for {size}")
        values.rows = suited
        if (size == "mouse") != bool(values.root):
            problem = "is required: the folder of the scans" if size == "mouse" else "is for mouse"
            raise InputError("--root", problem)
    rest: list[Measured] = []

    def more(rows: Sequence[Row], found: Sequence[Compared]) -> tuple[list[Lines], list[str]]:
        tables, lines, all_rows = beside(rows, found, values.target_mm)
        rest.extend(all_rows)
        return tables, lines

    always = [f"--config.data.root={values.root}"] if values.root else []
    folder, _ = table.run(argv, f"Methods, {size}", always=always, beside=more)
    write_text_atomic(folder / "table.csv", as_csv(rest, values.target_mm))
    print(f"figures: {folder / 'table.csv'}")


if __name__ == "__main__":
    TABLE.define_flags()
    flags.DEFINE_string("root", None, "With --preset=mouse: the folder of the scans.")
    flags.DEFINE_float("target_mm", 2.5, "Minutes are given to this error on validation cases.")
    app.run(main)
