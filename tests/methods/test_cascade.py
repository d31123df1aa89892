"""The cascade: patches and coarse volumes, both stages, and that the second one refines."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import spots
from spots import MARGIN, SPACING

from jaxmark.config import Augment
from jaxmark.data.cases import PreparedCase, Volume, save_case
from jaxmark.data.multiscale import coarse, first_voxels, patch
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.cascade import Cascade, FirstStage, read_coarse, read_patches
from jaxmark.methods.method import Batch, Prediction
from jaxmark.system.devices import data_mesh
from jaxmark.system.errors import InputError

TASK = dataclasses.replace(spots.TASK, augment=Augment(translation_voxels=0))
SMALL = Cascade(
    steps=150,
    refine_steps=150,
    factor=2,
    widths=(8, 16),
    sigma_mm=2.5,
    sides=(0.3,),
    patch=8,
    reach_mm=3.5,
    refine_widths=(16, 16),
    hidden=32,
    learning_rate=1e-2,
    refine_learning_rate=3e-3,
    decay=0.5,
)


def cases(folder, count=6):
    """Prepared cases of spots, as `spots.batch` has them."""
    whole = spots.batch(count)
    found = []
    for number in range(count):
        place = np.diag([*SPACING, 1.0])
        case = PreparedCase(
            name=f"c{number}",
            folder=folder / f"c{number}",
            ijk_to_lps=place,
            landmarks_mm=np.asarray(whole.landmarks_ijk[number]) * SPACING,
            present=np.ones(2, bool),
            absent=np.zeros(2, bool),
        )
        save_case(case, np.asarray(whole.image[number, ..., 0]), folder)
        found.append(case)
    return found


def batches(cases, read, steps, rng):
    for _ in range(steps):
        rows = [read(case, rng) for case in cases]
        yield Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


@pytest.mark.parametrize(
    ("refine", "weights"),
    [("displacement", "truth"), ("displacement", "cross_entropy"), ("heatmap", "cross_entropy")],
)
def test_the_second_stage_sees_what_the_first_cannot(tmp_path, refine, weights):
    seen = cases(tmp_path)
    settings = dataclasses.replace(SMALL, refine=refine, weights=weights)
    method = settings.build(TASK)
    state, rng = method.init(jax.random.key(0)), np.random.default_rng(0)
    predictor = Predictor(method, 2, data_mesh())
    errors, returned = [], set()
    for phase in method.phases:
        step = jax.jit(phase.step)
        for number, data in enumerate(batches(seen, phase.read, phase.steps, rng)):
            state, metrics = step(state, data, jax.random.key(number))
        returned |= set(metrics)
        found = list(predictor(state.variables, (case.volume for case in seen)))
        rows = zip(found, seen, strict=True)
        apart = [(f.landmarks_mm("subvoxel"), f.landmarks_mm("stage1"), c) for f, c in rows]
        errors.append([
            np.mean([np.linalg.norm(p[k] - p[2].landmarks_mm, axis=1) for p in apart])
            for k in (0, 1)
        ])  # fmt: skip
    # All that are declared; with a heatmap there is no distance.
    assert returned == set(Cascade.metrics) - ({"distance_mm"} if refine == "heatmap" else set())
    before, after = errors
    # Before it is trained, the second stage has no say; the first one's word stays.
    assert before[1] == after[1] < 4.0
    # What the first one says of a voxel of its own.
    assert after[0] < 0.75 * after[1]


def test_a_coarse_volume_is_of_means():
    rng = np.random.default_rng(0)
    image = rng.random((8, 12, 4)).astype(np.float16)
    found = coarse(image, 2)
    assert found.dtype == np.float16 and found.shape == (4, 6, 2)
    np.testing.assert_allclose(found[1, 2, 1], image[2:4, 4:6, 2:4].mean(), rtol=1e-3)


@pytest.mark.parametrize("first", [(2, 3, 1), (-3, 0, 2), (6, -9, 0), (7, 5, 3)])
def test_a_patch_is_the_volume_and_zeros_beyond(first):
    image = np.random.default_rng(0).random((8, 7, 6)).astype(np.float16)
    found = patch(image, np.array(first), 4)
    padded = np.pad(image, 16)
    x, y, z = (slice(f + 16, f + 20) for f in first)
    np.testing.assert_array_equal(found, padded[x, y, z])


def test_patches_are_centred_within_half_a_voxel():
    centres = np.random.default_rng(0).uniform(-5, 20, (100, 3))
    for side in (7, 8):
        middle = first_voxels(centres, side) + (side - 1) / 2
        assert np.abs(middle - centres).max() <= 0.5


def test_patches_are_drawn_around_landmarks_and_hold_them(tmp_path):
    (case,) = cases(tmp_path, 1)
    read = functools.partial(read_patches, side=8, reach_mm=3.0, spacing_mm=SPACING)
    drawn = [read(case, np.random.default_rng(seed)) for seed in range(50)]
    again = read(case, np.random.default_rng(7))
    np.testing.assert_array_equal(again["image"], drawn[7]["image"])
    points = np.stack([one["landmarks_ijk"] for one in drawn])
    off = (points - 3.5) * SPACING
    assert (np.abs(off) <= 3.0 + np.array(SPACING) / 2).all()
    assert (np.abs(off).max((0, 1)) > 2.0).all()
    # The brightest voxel near the large spot's centre is where the landmark is said to be.
    image = np.pad(case.image(), 16)
    at = drawn[3]["landmarks_ijk"][0].round().astype(int)
    full = case.landmarks_ijk[0].round().astype(int) + 16
    assert drawn[3]["image"][0][tuple(at)][0] == image[tuple(full)]


def test_coarse_landmarks_are_where_the_fine_ones_are(tmp_path):
    (case,) = cases(tmp_path, 1)
    read = read_coarse(case, np.random.default_rng(0), factor=2)
    np.testing.assert_allclose(
        (read["landmarks_ijk"] + 0.5) * 2 - 0.5, case.landmarks_ijk, rtol=1e-5
    )


def test_the_first_stage_s_positions_come_back_at_full_resolution(tmp_path):
    (case,) = cases(tmp_path, 1)
    stage = FirstStage(SMALL, TASK).stage
    # Of the crop, which the stage sees; landmarks of `read_coarse` are of the whole.
    coarse_ijk = read_coarse(case, np.random.default_rng(0), factor=2)["landmarks_ijk"] - MARGIN / 2
    found = Prediction({"subvoxel": coarse_ijk}, score=np.ones(2), evidence=np.ones(2))
    back = stage.finish(found).positions_ijk["subvoxel"]
    np.testing.assert_allclose(back, case.landmarks_ijk, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"factor": 8},
            r"config\.data\.crop: \(16, 16, 8\) has a side that is not a multiple of 16, which 2 ",
        ),
        ({"patch": 6}, r"config\.method\.patch: 6 is not a multiple of 4"),
        ({"sides": ()}, r"config\.method\.sides: \(\) is not a weight of 0 or more for each side"),
        ({"sides": (-1.0,)}, r"config\.method\.sides: \(-1\.0,\) is not a weight of 0 or more"),
        ({"reach_mm": 9.0}, r"config\.method\.reach_mm: 9\.0 takes landmarks out of patches of 8"),
        ({"weights": "none"}, r"config\.method\.weights: 'none'"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **changes).build(TASK)


def test_a_volume_smaller_than_a_patch_has_zeros_around_it():
    side = 32
    method = dataclasses.replace(SMALL, patch=side, refine_widths=(4, 4)).build(TASK)
    image = np.ones((20, 20, 12), np.float16)
    volume = Volume("small", lambda: image, np.eye(4))
    (found,) = Predictor(method, 1, data_mesh())(method.init(jax.random.key(0)).variables, [volume])
    assert np.isfinite(found.landmarks_mm("subvoxel")).all()
