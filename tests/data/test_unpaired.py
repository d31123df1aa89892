"""Landmark sets without scans: read, placed among prepared cases, refused where they can't be."""

import dataclasses

import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine, compose_affine, rotation_from_quaternion
from jaxmark.data.cases import PreparedCase
from jaxmark.data.frame import Frame
from jaxmark.data.landmarks import write_mrk_json, write_table
from jaxmark.data.unpaired import place_unpaired, read_unpaired

NAMES = ("a", "b", "c", "d", "e")
FRAME = Frame(
    register="none",
    metric="correlation",
    search_degrees=0,
    template=None,
    common_to_template=np.eye(4),
    grid_to_common=compose_affine(np.diag([2.0, 2.0, 3.0]), np.array([-40.0, -40.0, -30.0])),
    shape=(40, 40, 20),
    intensity="percentiles",
    intensity_range=(0, 100),
)


def shape(rng, spread=0.0):
    mean = np.array([[-20, 0, 5], [20, 2, 4], [0, -15, 10], [3, 18, -8], [0, 0, -12.0]])
    return mean + rng.normal(0, spread, mean.shape) if spread else mean


def case(landmarks_mm, name="c"):
    # Its scan's frame is the common one: nothing was registered.
    present = np.isfinite(landmarks_mm).all(-1)
    return PreparedCase(name, None, FRAME.grid_to_common, landmarks_mm, present, ~present)


def turned(points, rng, degrees, shift):
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    half = np.radians(degrees) / 2
    rotation = rotation_from_quaternion(np.concatenate([[np.cos(half)], np.sin(half) * axis]))
    return apply_affine(compose_affine(rotation, shift), points)


@pytest.mark.parametrize("folder", [False, True])
def test_a_table_or_a_folder_of_files_is_read(tmp_path, folder):
    rng = np.random.default_rng(0)
    people = {f"p{i}": dict(zip(NAMES, shape(rng, 2.0), strict=True)) for i in range(3)}
    del people["p1"]["c"]
    if folder:
        path = tmp_path / "sets"
        for name, points in people.items():
            write_mrk_json(path / f"{name}.mrk.json", points)
    else:
        path = tmp_path / "sets.csv"
        write_table(path, people)
    where, sets = read_unpaired(Data(unpaired=str(path)), NAMES)
    assert where == path and list(sets) == ["p0", "p1", "p2"]
    assert np.isnan(sets["p1"][2]).all()
    np.testing.assert_array_equal(sets["p2"][4], people["p2"]["e"])


def test_the_cohort_s_own_file_is_found(tmp_path):
    write_table(tmp_path / "unpaired.csv", {"p": {"a": np.zeros(3)}})
    where, _ = read_unpaired(Data(root=str(tmp_path)), NAMES)
    assert where == tmp_path / "unpaired.csv"


def test_what_cannot_be_read_is_named(tmp_path):
    refused(
        lambda: read_unpaired(Data(root=str(tmp_path)), NAMES),
        "config.data.unpaired: there is no",
        "'images' does without",
    )
    write_table(tmp_path / "x.csv", {"p": {"A1": np.zeros(3)}})
    refused(
        lambda: read_unpaired(Data(unpaired=str(tmp_path / "x.csv")), NAMES),
        tmp_path / "x.csv",
        "case 'p': landmark 'A1' is not in config.data.landmarks; the nearest name is",
    )
    (tmp_path / "empty").mkdir()
    refused(
        lambda: read_unpaired(Data(unpaired=str(tmp_path / "empty")), NAMES), "holds no landmarks"
    )


def test_sets_of_the_common_frame_are_only_measured_in_voxels(tmp_path):
    points = shape(np.random.default_rng(0))
    placed = place_unpaired({"p": points}, [], FRAME, "none", tmp_path)
    np.testing.assert_allclose(apply_affine(FRAME.grid_to_common, placed[0]), points)


def test_points_outside_of_the_volume_are_absent(tmp_path):
    points = shape(np.random.default_rng(0))
    points[1, 0] = 1000.0
    placed = place_unpaired({"p": points}, [], FRAME, "none", tmp_path)
    assert np.isnan(placed[0, 1]).all() and np.isfinite(placed[0, [0, 2, 3, 4]]).all()


def test_aligned_sets_lie_as_the_training_cases_lie(tmp_path):
    rng = np.random.default_rng(1)
    train = [case(turned(shape(rng), rng, 8, rng.normal(0, 2, 3))) for _ in range(3)]
    sets = {f"p{i}": turned(shape(rng), rng, 100, rng.normal(0, 200, 3)) for i in range(6)}
    sets["p4"][0] = np.nan
    placed = place_unpaired(sets, train, FRAME, "rigid", tmp_path)
    for number, ijk in enumerate(placed):
        expected = train[number % 3].landmarks_ijk
        seen = np.isfinite(ijk).all(-1)
        assert seen.sum() == (4 if number == 4 else 5)
        np.testing.assert_allclose(ijk[seen], expected[seen], atol=1e-6)


def test_similarity_also_takes_the_size(tmp_path):
    rng = np.random.default_rng(2)
    train = [case(shape(rng))]
    sets = {"p": turned(1.3 * shape(rng), rng, 30, np.full(3, 50.0))}
    placed = place_unpaired(sets, train, FRAME, "similarity", tmp_path)
    np.testing.assert_allclose(placed[0], train[0].landmarks_ijk, atol=1e-6)


def test_one_gross_outlier_does_not_turn_a_set(tmp_path):
    rng = np.random.default_rng(3)
    train = [case(shape(rng))]
    points = turned(shape(rng), rng, 60, np.full(3, 10.0))
    wrong = points.copy()
    wrong[3] += [60, -40, 30]
    placed = place_unpaired({"p": wrong}, train, FRAME, "rigid", tmp_path)[0]
    good = [0, 1, 2, 4]
    error = (placed - train[0].landmarks_ijk)[good] * [2, 2, 3]
    assert np.linalg.norm(error, axis=-1).max() < 2.0


def test_a_set_with_too_few_points_is_named(tmp_path):
    points = shape(np.random.default_rng(0))
    points[2:] = np.nan
    refused(
        lambda: place_unpaired({"p7": points}, [case(shape(None))], FRAME, "rigid", tmp_path),
        "case 'p7' can't be aligned: a rigid fit needs 3 points, got 2",
    )


def test_the_frame_is_that_of_the_prepared_cases():
    # A case is where its own `landmarks_ijk` says, whatever frame is in between.
    points = shape(None)
    moved = dataclasses.replace(
        case(points), ijk_to_lps=compose_affine(np.eye(3), np.full(3, 5.0)) @ FRAME.grid_to_common
    )
    placed = place_unpaired({"p": points + 5}, [moved], FRAME, "rigid", None)
    np.testing.assert_allclose(placed[0], moved.landmarks_ijk, atol=1e-6)
