"""The ablation's rows: each has one task more than the one before, and all else is the same."""

import numpy as np
import pytest

from experiments import cow_multitask
from jaxmark.config import to_json, validate
from jaxmark.core.anatomy import COW19
from jaxmark.data.phantoms.cow.cohort import has_pathology
from jaxmark.methods.method import LABEL_MAPS, SEGMENTS, Task
from jaxmark.results.compare import compare
from jaxmark.results.evaluate import evaluate
from jaxmark.results.measures.points import Points

TASKS = (
    "segmentation",
    "fork_attributes",
    "segment_attributes",
    "consistency",
    "orientation",
)


def config(row, size="small"):
    return to_json(cow_multitask.get_config(f"{size}/{row}"))


@pytest.mark.parametrize("size", cow_multitask.SIZES)
@pytest.mark.parametrize("row", cow_multitask.TABLE.rows)
def test_every_row_is_an_experiment_that_fits_its_volumes(size, row):
    experiment = validate(cow_multitask.get_config(f"{size}/{row}"))
    data = experiment.data
    task = Task(COW19, data.crop, data.margins, data.spacing_mm, experiment.augment)
    assert experiment.method.build(task).phases
    assert experiment.phantom.scheme is COW19


@pytest.mark.parametrize("size", cow_multitask.SIZES)
def test_rows_add_one_task_after_the_other(size):
    rows = {row: config(row, size) for row in cow_multitask.TABLE.rows}
    on = {row: [t for t in TASKS if tree["method"][t]] for row, tree in rows.items()}
    assert on == {
        "Heatmaps": [],
        "Segmentation": ["segmentation"],
        "Forks": ["segmentation", "fork_attributes"],
        "Segments": ["segmentation", "fork_attributes", "segment_attributes"],
        "Multitask": ["segmentation", "fork_attributes", "segment_attributes", "consistency"],
        "Evidence": ["segmentation", "fork_attributes", "segment_attributes", "consistency"],
        "Orientation": ["segmentation", "orientation"],
    }
    found = {row: tree["method"]["attributes_from"] for row, tree in rows.items()}
    assert [row for row, source in found.items() if source == "labels"] == ["Evidence"]
    for tree in rows.values():
        for part in ("data", "phantom", "augment", "train", "predict"):
            assert tree[part] == rows["Multitask"][part]


def test_what_a_row_does_not_learn_it_does_not_read():
    needs = {
        row: cow_multitask.get_config(f"tiny/{row}").method.needs for row in ("Heatmaps", "Forks")
    }
    assert needs == {"Heatmaps": frozenset(), "Forks": {SEGMENTS, LABEL_MAPS}}


def test_the_paper_s_settings():
    method = cow_multitask.get_config("paper/Multitask").method
    assert (method.learning_rate, method.beta1, method.heatmap_loss) == (1e-4, 0.5, "balanced_l2")
    # 150 epochs of 25 healthy people and 25 with aneurysms or stenoses, one at a time.
    phantom = cow_multitask.get_config("paper/Multitask").phantom
    assert method.steps == 150 * phantom.train == 7500 and phantom.test == 20


def test_errors_are_told_apart_by_pathology(tmp_path):
    phantom = cow_multitask.get_config("small/Multitask").phantom
    ill = [has_pathology(phantom, number) for number in range(4)]
    assert set(ill) == {True, False}
    truth = np.zeros((4, 1, 3))
    off_mm = np.where(ill, 2.0, 1.0)
    predicted = truth + off_mm[:, None, None] * [1, 0, 0]
    points = Points(
        cases=tuple(f"phantom-{number:03d}" for number in range(4)),
        landmarks=("a",),
        truth_mm=truth,
        predicted_mm=predicted,
        present=np.ones((4, 1), bool),
        absent=np.zeros((4, 1), bool),
        score=np.ones((4, 1)),
        presence=np.ones((4, 1)),
        radius_mm=np.ones((4, 1)),
    )
    evaluate(points, thresholds_mm=(2.0,), floors={}, folder=tmp_path / "evaluation")
    text = cow_multitask.by_pathology(phantom, compare({"Heatmaps": [tmp_path]}, "Heatmaps"))
    assert text.splitlines()[1] == f"Heatmaps,{4 - sum(ill)},1.000,{sum(ill)},2.000"


@pytest.mark.parametrize("preset", ["small", "small/All", "huge/Forks"])
def test_other_rows_and_sizes_are_refused(preset):
    with pytest.raises(ValueError, match="there is no preset"):
        cow_multitask.get_config(preset)
