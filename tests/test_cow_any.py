"""The detector of any scan: its presets, a run of the smallest, and real vessels' bifurcations."""

import csv

import numpy as np
import pytest
from running import jaxmark

from experiments.cow_any import get_config
from experiments.cow_real import drawn, junctions
from experiments.phantoms import looks
from jaxmark.config import from_json, to_json, validate
from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.phantoms.grids import Grid
from jaxmark.registry import METHODS, PHANTOMS


@pytest.mark.parametrize("preset", ["small", "full", "tiny"])
def test_presets_are_whole_and_survive_a_file(preset, tmp_path):
    experiment = validate(get_config(preset))
    assert from_json(to_json(experiment), METHODS | PHANTOMS, tmp_path) == experiment


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="there is no preset 'big', but small, full, tiny"):
        get_config("big")


def test_the_smallest_is_trained_on_a_stream_and_predicts_a_scan(tmp_path):
    config = "--config=experiments/cow_any.py:tiny"
    place = [f"--workdir={tmp_path}/run", f"--config.data.cache={tmp_path}/cache"]
    trained = jaxmark(config, *place)
    assert trained.returncode == 0, trained.stderr
    # Where scans are put by their middles, how much of the volume they fill is no doubt.
    assert "of the prepared volume" not in trained.stdout + trained.stderr
    (scan,) = (tmp_path / "cache").glob("phantom-*/images/*002.nii.gz")
    found = jaxmark(
        config, *place, "--mode=predict", f"--input={scan}", f"--output={tmp_path}/found"
    )
    assert found.returncode == 0, found.stderr
    (table,) = (tmp_path / "found").glob("*.csv")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["landmark"] for row in rows] == list(COW19.landmarks)


def test_bifurcations_lie_where_labels_touch():
    labels = np.zeros((30, 20, 20), int)
    labels[5:15, 8:11, 8:11] = 4  # right internal carotid
    labels[15:25, 8:11, 8:11] = 5  # right middle cerebral
    labels[12:15, 11:18, 8:11] = 11  # right anterior cerebral
    labels[2:4, 2:4, 2:4] = 10  # touches nothing
    place = compose_affine(np.diag([0.5, 0.5, 0.8]), np.array([3.0, -40.0, 7.0]))
    found = junctions(labels, place)
    assert list(found) == ["ICA terminus R"]
    near = apply_affine(np.linalg.inv(place), found["ICA terminus R"])
    np.testing.assert_allclose(near, [14, 9.8, 9], atol=1.0)


def test_drawn_arteries_are_brighter_than_what_is_around_them():
    labels = np.zeros((24, 24, 24), int)
    labels[8:16, 8:16, :] = 1
    for look in ("mra", "cta", "arteries"):
        image = drawn(labels, look, np.random.default_rng(0))
        inside, outside = image[10:14, 10:14], image[:4]
        assert inside.mean() > 300 and outside.mean() < 120


def test_a_look_with_a_smaller_field_of_view_says_what_lies_outside():
    place = compose_affine(np.diag([5.0] * 3), np.array([-90.0, -90.0, -70.0]))
    grid = Grid((36, 36, 28), place)
    (case,) = looks.people(1, grid)
    one = looks.scan(case, "box", grid, 0)
    assert one.voxels.shape != grid.shape and one.present.any()
    ijk = apply_affine(np.linalg.inv(one.ijk_to_lps), one.landmarks_mm)
    within = ((ijk >= -0.5) & (ijk <= np.array(one.voxels.shape) - 0.5)).all(1)
    assert within[one.present].all() and not (one.present & one.outside).any()
    assert ((one.present | one.outside) == case["present"]).all()
