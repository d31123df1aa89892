"""The rows of the cascade's table fit their volumes, and landmarks stand beside the paper's."""

import numpy as np
import pytest

from experiments import cascade_table
from jaxmark.config import to_json, validate
from jaxmark.data.phantoms.vessels.coronaries import CORONARY5
from jaxmark.methods.method import Task

ROWS = cascade_table.TABLE.rows


@pytest.mark.parametrize("size", cascade_table.SIZES)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_an_experiment_that_fits_its_volumes(size, row):
    experiment = validate(cascade_table.get_config(f"{size}/{row}"))
    data = experiment.data
    task = Task(CORONARY5, data.crop, data.margins, data.spacing_mm, experiment.augment)
    phases = [phase.name for phase in experiment.method.build(task).phases]
    assert phases == (["coarse"] if row in cascade_table.DECODERS else ["coarse", "fine"])
    assert experiment.phantom.scheme is CORONARY5


@pytest.mark.parametrize("size", cascade_table.SIZES)
def test_rows_differ_in_their_method_and_decoder_alone(size):
    trees = {row: to_json(cascade_table.get_config(f"{size}/{row}")) for row in ROWS}
    for tree in trees.values():
        for part in ("data", "phantom", "augment", "train", "evaluate"):
            assert tree[part] == trees["Two-stage"][part]
    methods = {row: tree["method"] for row, tree in trees.items()}
    base = methods["Two-stage"]

    def changed(row):
        return {name for name, value in methods[row].items() if value != base[name]}

    assert changed("Entire-image") == {"refine_steps"}
    assert changed("Patch-based") - {"sigma_mm"} == {"refine_steps", "first_patch"}
    assert changed("Ours") - {"refine_widths", "sigma_mm", "height"} == {"weights", "refine"}
    # The paper: the voxel of the maximum.
    for row in ("Patch-based", "Entire-image"):
        assert trees[row]["predict"]["decoder"] == "stage1"
    assert base["weights"] == "prediction" and base["refine"] == "displacement"


def test_the_paper_s_rows():
    method = cascade_table.get_config("paper/Patch-based").method
    assert (method.first_patch, method.steps) == (48, 11_250)
    means = {
        row: np.mean([v for v in p if v is not None]) for row, p in cascade_table.PAPER.items()
    }
    assert means["Patch-based"] == pytest.approx(6.25, abs=0.005)
    assert means["Entire-image"] == pytest.approx(3.99, abs=0.005)
    assert means["Two-stage"] == pytest.approx(2.08, abs=0.005)


def test_each_landmark_stands_beside_the_paper_s():
    errors = np.full((3, 5), 2.0)
    errors[0, 3], errors[:, 1] = np.nan, [1.0, 2.0, 3.0]
    lines = cascade_table.by_landmark({"Two-stage": errors}).splitlines()
    assert lines[0].startswith("row,left coronary ostium (mm),right coronary ostium (mm),")
    assert lines[1] == "Two-stage,2.00 (0.00),2.00 (0.82),2.00 (0.00),2.00 (0.00),2.00 (0.00),2.00"
    assert "Two-stage (in the paper),1.48,1.37,1.46,3.51,2.58,2.08" in lines
    assert lines[-1] == "Noothout et al. (2018),2.88,2.19,2.10,3.78,,"


@pytest.mark.parametrize("preset", ["small", "small/Both", "huge/Ours"])
def test_other_rows_and_sizes_are_refused(preset):
    with pytest.raises(ValueError, match="there is no preset"):
        cascade_table.get_config(preset)
