"""The cascade: patches and coarse volumes, both stages, and that the second one refines."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import spots
from spots import MARGIN, SPACING

from jaxmark.config import Augment
from jaxmark.core.augmentation import random_affines
from jaxmark.data.cases import PreparedCase, Volume, read_coarse, save_case
from jaxmark.data.multiscale import coarse, covering, first_voxels, patch
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.cascade import (
    Cascade,
    FirstStage,
    PatchedFirstStage,
    SecondStage,
    read_patches,
    view_border,
)
from jaxmark.methods.method import Batch, Prediction, Variables
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
    learning_rate=3e-3,
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
    [
        ("displacement", "cross_entropy"),
        pytest.param("displacement", "truth", marks=pytest.mark.slow),
        pytest.param("heatmap", "cross_entropy", marks=pytest.mark.slow),
    ],
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
        (
            {"first_patch": 8, "coordinates": True},
            r"config\.method\.coordinates: are places in the whole volume: first_patch must be 0",
        ),
        ({"first_patch": 7}, r"config\.method\.first_patch: 7 is not a multiple of 2"),
        (
            {"first_patch": 8, "weights": "cross_entropy"},
            r"config\.method\.weights: cross_entropy does not compare patches",
        ),
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


# --- stage 1 by patches


@pytest.mark.parametrize(("shape", "side"), [((16, 8, 24), 8), ((17, 9, 8), 8), ((5, 9, 8), 8)])
def test_patches_side_by_side_cover_the_volume(shape, side):
    seen = np.zeros(np.maximum(shape, side), int)
    corners = covering(shape, side)
    for x, y, z in corners:
        seen[x : x + side, y : y + side, z : z + side] += 1
    assert seen.min() == 1
    assert len(corners) == np.prod([-(-n // side) for n in shape])
    assert (corners + side <= np.maximum(shape, side)).all()


PATCHED = dataclasses.replace(SMALL, first_patch=8, refine_steps=0, weights="prediction")


def test_the_highest_response_of_all_patches_counts(monkeypatch):
    """Of a first stage that says what it sees: each landmark's place is the brightest voxel."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 0.5, np.add(TASK.crop, 2 * MARGIN)).astype(np.float16)
    # In the last patches, which overlap with those before; and in the border, which is not seen.
    image[16, 15, 7], image[0, 0, 0] = 1.0, 2.0
    task = dataclasses.replace(TASK, crop=(15, 14, 8))
    image = image[:19, :18, :12]

    def found(self, variables, images):
        flat = images.reshape(images.shape[0], -1)
        at = np.stack(np.unravel_index(range(flat.shape[1]), images.shape[1:4]), -1)
        place = jax.numpy.asarray(at, np.float32)[flat.argmax(1)][:, None].repeat(2, 1)
        score = flat.max(1)[:, None].repeat(2, 1)
        return Prediction({"subvoxel": place}, score=score, evidence=-score)

    monkeypatch.setattr(FirstStage, "found", found)
    stage = PatchedFirstStage(PATCHED, task).stage
    volume = Volume("v", lambda: image, np.eye(4))
    arrays = {"image": np.stack([stage.read(volume, None)["image"]] * 2)}
    said = stage.run(Variables(params={}), arrays)
    np.testing.assert_array_equal(said.positions_ijk["subvoxel"], np.tile([16, 15, 7], (2, 2, 1)))
    assert (said.score == 1).all() and (said.evidence == -1).all()


def test_half_of_the_patches_show_a_landmark_and_all_show_the_volume(tmp_path):
    (case,) = cases(tmp_path, 1)
    case = dataclasses.replace(case, present=np.array([True, False]))
    stage = PatchedFirstStage(PATCHED, TASK)
    drawn = [stage.read(case, np.random.default_rng(seed)) for seed in range(100)]
    inside = [((d["landmarks_ijk"][0] > -1) & (d["landmarks_ijk"][0] < 8)).all() for d in drawn]
    assert np.mean(inside) > 0.5
    again = stage.read(case, np.random.default_rng(7))
    np.testing.assert_array_equal(again["image"], drawn[7]["image"])
    # What a patch shows is what lies there in the volume.
    image = case.image()
    for d in drawn[:20]:
        first = np.rint(case.landmarks_ijk[0] - d["landmarks_ijk"][0]).astype(int)
        np.testing.assert_array_equal(d["image"][..., 0], patch(image, first, 8))


def test_a_first_stage_of_patches_learns(tmp_path):
    seen = cases(tmp_path)
    settings = dataclasses.replace(PATCHED, steps=200, refine_batch=12, weights="truth")
    method = settings.build(TASK)
    (phase,) = method.phases
    assert phase.batch == 12
    state, rng = method.init(jax.random.key(0)), np.random.default_rng(0)
    step = jax.jit(phase.step)
    for number, data in enumerate(batches(seen * 2, phase.read, phase.steps, rng)):
        state, _ = step(state, data, jax.random.key(number))
    predictor = Predictor(method, 2, data_mesh())
    found = predictor(state.variables, (case.volume for case in seen))
    errors = [
        np.linalg.norm(f.landmarks_mm("stage1") - case.landmarks_mm, axis=1)
        for f, case in zip(found, seen, strict=True)
    ]
    # At first it is 9 mm.
    assert np.mean(errors) < 5


# --- patches of stage 2


def test_no_view_reaches_beyond_what_is_read():
    augment = Augment(rotation_degrees=20, scale=0.1)
    side = 16
    border = view_border(side, augment)
    corners = (np.stack(np.meshgrid(*[(-1, 1)] * 3), -1).reshape(-1, 3)) * (side - 1) / 2
    matrices = random_affines(jax.random.key(0), 2000, degrees=20, scale=0.1)
    reached = np.abs(np.einsum("nij,cj->nci", matrices, corners)).max()
    # Not beyond, and no more than a voxel is never used.
    assert border - 1 < reached - (side - 1) / 2 + 0.5 and reached <= side / 2 + border
    assert view_border(side, Augment(translation_voxels=3)) == 0


def test_views_of_patches_keep_landmarks_where_they_are_seen(tmp_path):
    seen = cases(tmp_path, 3)
    task = dataclasses.replace(TASK, augment=Augment(rotation_degrees=30, scale=0.1))
    stage = SecondStage(SMALL, task)
    assert stage.side == 8 + 2 * view_border(8, task.augment) > 8
    read = functools.partial(read_patches, side=stage.side, reach_mm=1.0, spacing_mm=SPACING)
    (batch,) = batches(seen, read, 1, np.random.default_rng(0))
    view = stage.views(batch, jax.random.key(0))
    assert view.image.shape == (3, 2, 8, 8, 8, 1)
    # The spots are the brightest voxels.
    image = np.asarray(view.image[..., 0]).reshape(3, 2, -1)
    at = np.stack(np.unravel_index(image.argmax(-1), (8, 8, 8)), -1)
    assert np.abs(at - view.landmarks_ijk).max() < 1.5
    moved = np.asarray(view.landmarks_ijk) + (stage.side - 8) / 2 - batch.landmarks_ijk
    assert np.abs(moved).max() > 0.1


@pytest.mark.parametrize("refine", ["displacement", "heatmap"])
def test_a_shared_body_learns_from_all_landmarks(tmp_path, refine):
    (case,) = cases(tmp_path, 1)
    batch = Batch(
        **{
            name: value[None]
            for name, value in read_patches(
                case, np.random.default_rng(0), side=8, reach_mm=1.0, spacing_mm=SPACING
            ).items()
        }
    )
    alone = dataclasses.replace(batch, present=np.array([[True, False]]))

    def gradient(shared, data):
        stage = SecondStage(dataclasses.replace(SMALL, refine=refine, shared=shared), TASK)
        params = jax.tree.map(
            lambda x: x + 0.01 * jax.random.normal(jax.random.key(1), x.shape),
            stage.init(jax.random.key(0)),
        )
        return jax.grad(lambda p: stage.loss(p, data, jax.random.key(0))[0])(params)["params"]

    own, shared = gradient(False, alone), gradient(True, alone)
    for tree in (own["body"], own["last"], shared["last"]):
        for leaf in jax.tree.leaves(tree):
            assert leaf.shape[0] == 2 and not np.any(leaf[1])
    first = jax.tree.leaves(own["body"])[0].shape[1:]
    assert jax.tree.leaves(shared["body"])[0].shape == first
    both = gradient(True, batch)
    other = gradient(True, dataclasses.replace(batch, present=np.array([[False, True]])))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(both))
    if refine == "displacement":
        for a, b, c in zip(
            *(jax.tree.leaves(t["body"]) for t in (both, shared, other)), strict=True
        ):
            np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("refine", ["displacement", "heatmap"])
def test_a_case_without_any_landmark_teaches_the_second_stage_nothing(tmp_path, refine):
    (case,) = cases(tmp_path, 1)
    nowhere = np.full((2, 3), np.nan)
    case = dataclasses.replace(
        case, landmarks_mm=nowhere, present=np.zeros(2, bool), absent=np.ones(2, bool)
    )
    read = functools.partial(read_patches, side=8, reach_mm=1.0, spacing_mm=SPACING)
    (batch,) = batches([case], read, 1, np.random.default_rng(0))
    stage = SecondStage(dataclasses.replace(SMALL, refine=refine), TASK)
    params = stage.init(jax.random.key(0))
    (value, _), slope = jax.value_and_grad(stage.loss, has_aux=True)(
        params, batch, jax.random.key(0)
    )
    assert value == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(slope))


def test_shifted_patches_are_averaged(tmp_path):
    (case,) = cases(tmp_path, count=1)
    one = SecondStage(dataclasses.replace(SMALL, reach_mm=2.0), TASK)
    eight = SecondStage(dataclasses.replace(SMALL, reach_mm=2.0, shifted=1), TASK)
    params = one.init(jax.random.key(0))
    # The last layer starts at zero, and would move nothing.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), params)
    # Not so much that the hyperbolic tangent is at its end.
    last = jax.tree.map(lambda x: 0.1 * x, params["params"]["last"])
    params = {"params": {**params["params"], "last": last}}
    variables = Variables(params={"fine": params}, statistics={"refine": 1.0})
    found = (case.landmarks_ijk + 0.7).astype(np.float32)
    places = {name: found for name in ("stage1", "stage1_subvoxel", "subvoxel")}
    zeros = np.zeros(2, np.float32)
    earlier = Prediction(places, zeros, zeros, spread_mm=zeros)

    def said(stage):
        arrays = stage.read(case.volume, earlier)
        batch = {name: np.stack([array] * 2) for name, array in arrays.items()}
        return np.asarray(stage.run(variables, batch).positions_ijk["subvoxel"])

    first = first_voxels(found, SMALL.patch)
    by_hand = []
    for shift in np.ndindex(2, 2, 2):
        corners = first + 2 * np.array(shift) - 1
        patches = np.stack([case.volume.patch(corner, SMALL.patch) for corner in corners])
        inside, _ = one.positions(params, patches[:, None, ..., None].astype(np.float32))
        by_hand.append(corners + np.asarray(inside)[0])
    expected = np.mean(by_hand, axis=0)
    assert abs(expected - found).max() > 0.05
    np.testing.assert_allclose(said(eight.stage), np.stack([expected] * 2), atol=1e-4)
    assert abs(said(one.stage) - expected).max() > 1e-3


def test_the_first_stage_may_know_where_it_looks(tmp_path):
    (case,) = cases(tmp_path, 1)
    settings = dataclasses.replace(SMALL, coordinates=True, head=4)
    method = settings.build(TASK)
    state = method.init(jax.random.key(0))
    (found,) = Predictor(method, 1, data_mesh())(state.variables, [case.volume])
    assert {"subvoxel", "stage1", "stage1_subvoxel"} == set(found.prediction.positions_ijk)
    kernels = jax.tree.leaves(state.params["coarse"]["params"]["levels_0"])
    assert any(kernel.ndim == 5 and kernel.shape[3] == 4 for kernel in kernels)
