"""A structure that lies anywhere, turned: found coarsely, then finely in its own pose."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Augment
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.geometry import apply_affine, compose_affine, rotation_from_quaternion
from jaxmark.core.pose import pose_of
from jaxmark.data.cases import PreparedCase, read_posed, save_case
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.coarse_to_fine import CoarseToFine, FineNetwork
from jaxmark.methods.heatmap import Generator, HeatmapRegression, LandmarkPrior
from jaxmark.methods.method import Batch, Prediction, Task
from jaxmark.system.devices import data_mesh

SHAPE_MM = np.array([[-8, -5, -4], [8, -6, -3], [0, 6, 4], [-7, 2, 4], [6, 1, -4]], float)
NAMES = ("a", "b", "c", "d", "e")
SPACING, CROP, MARGIN = (1.0, 1.0, 1.0), (32, 32, 32), (4, 4, 4)
TASK = Task(
    scheme=scheme_of(NAMES),
    crop=CROP,
    margin=MARGIN,
    spacing_mm=SPACING,
    augment=Augment(translation_voxels=0),
    shape_mm=SHAPE_MM,
)
SMALL = CoarseToFine(
    steps=80,
    fine_steps=110,
    factor=4,
    widths=(8, 16),
    sigma_mm=4.0,
    learning_rate=1e-2,
    crop=(24, 20, 16),
    fine_widths=(8, 16),
    fine_sigma_mm=1.5,
    fine_learning_rate=1e-2,
    shift=2,
    turn_degrees=5.0,
    resize=0.05,
)


def cases(folder, count=6):
    """The shape as blobs of its own sizes, moved and turned."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        turn = rotation_from_quaternion(np.array([1.0, *rng.normal(0, 0.12, 3)]))
        pose = compose_affine(turn, rng.uniform(-5, 5, 3))
        # The scan's own world is elsewhere.
        place = compose_affine(np.diag(SPACING), np.array([40.0, -90.0, 7.0]) - 19.5)
        points = apply_affine(pose, SHAPE_MM) + np.array([40.0, -90.0, 7.0])
        ijk = apply_affine(np.linalg.inv(place), points)
        axes = np.indices(np.array(CROP) + 2 * np.array(MARGIN)).transpose(1, 2, 3, 0)
        image = sum(
            (0.5 + 0.2 * k) * np.exp(-((axes - p) ** 2).sum(-1) / (2 * (1.0 + 0.3 * k) ** 2))
            for k, p in enumerate(ijk)
        )
        image = image + 0.02 * rng.standard_normal(image.shape)
        here = np.ones(len(NAMES), bool)
        case = PreparedCase(f"c{number}", folder / f"c{number}", place, points, here, ~here)
        save_case(case, image, folder)
        found.append(case)
    return found


def test_the_fine_network_finds_what_the_coarse_one_cannot(tmp_path):
    seen = cases(tmp_path)
    method = SMALL.build(TASK)
    state, rng = method.init(jax.random.key(0)), np.random.default_rng(0)
    predictor = Predictor(method, 2, data_mesh())
    errors = []
    for phase in method.phases:
        step = jax.jit(phase.step)
        rows = [phase.read(case, rng) for case in seen]
        batch = Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
        for number in range(phase.steps):
            state, _ = step(state, batch, jax.random.key(number))
        found = list(predictor(state.variables, (case.volume for case in seen)))
        errors.append([
            np.mean([
                np.linalg.norm(f.landmarks_mm(name) - c.landmarks_mm, axis=1)
                for f, c in zip(found, seen, strict=True)
            ])
            for name in ("coarse", "subvoxel")
        ])  # fmt: skip
    before, after = errors
    # Before it is trained, the fine network has no say.
    assert before[0] == before[1] == pytest.approx(after[0])
    assert after[0] < 4.0 and after[1] < 0.4 * after[0]


def test_several_poses_are_tried_and_the_best_is_kept(tmp_path):
    (case,) = cases(tmp_path, 1)
    settings = dataclasses.replace(SMALL, looks=3, apart_mm=6.0)
    first, second, third = FineNetwork(settings, TASK).looks
    truth = apply_affine(np.linalg.inv(case.ijk_to_lps), case.landmarks_mm).astype(np.float32)
    ones = np.ones(len(NAMES), np.float32)
    coarse = Prediction(dict.fromkeys(CoarseToFine.decoders, truth), ones, ones, spread_mm=ones)
    read = first.read(case.volume, coarse)
    # As the coarse network says, 6 mm to each side of it, and in the middle.
    centres = read["to_volume"][:, :3, :3] @ ((np.array(SMALL.crop) - 1) / 2)
    centres = centres + read["to_volume"][:, :3, 3]
    off = centres - centres[0]
    expected = np.concatenate([np.zeros((1, 3)), 6 * np.eye(3), -6 * np.eye(3)])
    np.testing.assert_allclose(off[:7], expected, atol=1e-4)
    np.testing.assert_allclose(centres[7], [19.5] * 3, atol=1e-4)
    # The first look keeps the three with most evidence, the second one of them.
    evidence = np.zeros((8, len(NAMES)))
    evidence[4], evidence[6], evidence[1] = 1.0, 0.8, 0.9
    positions = {name: truth + np.arange(8)[:, None, None] for name in CoarseToFine.decoders}
    eight = np.ones((8, len(NAMES)), np.float32)
    found = Prediction(positions, eight, evidence, spread_mm=eight)
    three = first.finish(found)
    expected = truth + np.array([4, 1, 6])[:, None, None]
    np.testing.assert_allclose(three.positions_ijk["subvoxel"], expected, rtol=1e-6)
    assert second.read(case.volume, three)["image"].shape[0] == 3
    best = second.finish(three)
    np.testing.assert_allclose(best.positions_ijk["subvoxel"], truth + 4, rtol=1e-6)
    assert third.read(case.volume, best)["image"].shape[0] == 1


def test_with_a_mirror_a_mirrored_scan_gives_the_mirrored_answer():
    scheme = scheme_of(("a R", "a L", "m"))
    task = dataclasses.replace(TASK, scheme=scheme, shape_mm=None)
    kind = HeatmapRegression(widths=(4, 8), head=6, loss="cross_entropy", sigma_mm=2.0)
    symmetric = np.array([[-6.0, 1, 2], [6, 1, 2], [0, -3, 4]])
    for usual in (None, LandmarkPrior(symmetric, 8.0)):
        generator = Generator(kind, task, usual)
        params = generator.init(jax.random.key(0))
        image = jax.random.uniform(jax.random.key(1), (1, *CROP, 1))
        one = generator.predict(params, image, mirror=True)
        other = generator.predict(params, image[:, ::-1], mirror=True)
        turned = np.asarray(other.positions_ijk["argmax"])[:, [1, 0, 2]]
        turned = np.array([CROP[0] - 1, 0, 0]) + np.array([-1, 1, 1]) * turned
        np.testing.assert_allclose(one.positions_ijk["argmax"], turned)
        np.testing.assert_allclose(one.evidence, other.evidence[:, [1, 0, 2]], atol=1e-5)
        # Without it the answers differ.
        alone = generator.predict(params, image)
        assert np.abs(alone.score - one.score).max() > 1e-6


def test_a_network_that_knows_nothing_says_where_landmarks_usually_lie():
    kind = HeatmapRegression(widths=(4, 8), head=0, loss="cross_entropy", sigma_mm=2.0)
    generator = Generator(kind, TASK, LandmarkPrior(SHAPE_MM, 2.0))
    params = jax.tree.map(np.zeros_like, generator.init(jax.random.key(0)))
    found = generator.predict(params, np.ones((1, *CROP, 1), np.float32))
    usual_ijk = SHAPE_MM + (np.array(CROP) - 1) / 2
    np.testing.assert_allclose(found.positions_ijk["subvoxel"][0], usual_ijk, atol=0.05)
    np.testing.assert_allclose(found.spread_mm[0], 2.0 * np.sqrt(3), rtol=0.02)
    # It does not change how much speaks for a landmark's presence.
    np.testing.assert_allclose(found.evidence[0], 0, atol=0.01)


def test_landmarks_of_a_crop_lie_as_in_the_typical_shape(tmp_path):
    (case,) = cases(tmp_path, 1)
    fine = FineNetwork(SMALL, TASK)
    read = read_posed(case, np.random.default_rng(0), shape_mm=SHAPE_MM, grid=fine.grid)
    points_mm = apply_affine(fine.grid.ijk_to_lps, read["landmarks_ijk"])
    np.testing.assert_allclose(points_mm, SHAPE_MM, atol=1e-3)
    # And the image with them.
    for (i, j, k), own in zip(np.rint(read["landmarks_ijk"]).astype(int), range(5), strict=True):
        assert read["image"][i, j, k, 0] > 0.5 * (0.5 + 0.2 * own)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_pose_does_not_follow_landmarks_that_are_far_off(wrong):
    shape = np.random.default_rng(1).normal(0, 15, (19, 3))
    turn = rotation_from_quaternion(np.array([1.0, 0.1, -0.2, 0.15]))
    true = compose_affine(1.08 * turn, np.array([20.0, -150.0, 31.0]))
    points = apply_affine(true, shape)
    points[:wrong] += np.array([60.0, -40.0, 30.0])
    found = pose_of(shape, points, np.full(19, 1.0), np.array([0.0, -140.0, 0.0]))
    off = apply_affine(found, shape) - apply_affine(true, shape)
    assert np.linalg.norm(off, axis=1).max() < 1.0


def test_a_pose_without_any_sure_landmark_is_the_middle_of_the_scan():
    shape = np.random.default_rng(1).normal(0, 15, (19, 3))
    points = np.random.default_rng(2).normal(0, 80, (19, 3))
    middle = np.array([5.0, -140.0, 30.0])
    found = pose_of(shape, points, np.full(19, 1e4), middle)
    np.testing.assert_allclose(found[:3, 3], middle, atol=2)
    assert np.trace(found[:3, :3]) > 2.8


def test_a_pose_has_a_size_that_people_have():
    shape = np.random.default_rng(1).normal(0, 15, (19, 3))
    found = pose_of(shape, 3 * shape, np.full(19, 1.0), np.zeros(3))
    assert np.cbrt(np.linalg.det(found[:3, :3])) == pytest.approx(1.3)


def test_settings_that_do_not_fit_are_named():
    refused(
        lambda: dataclasses.replace(SMALL, crop=(24, 21, 16)).build(TASK),
        "config.method.crop",
        "21",
    )
    # Its landmarks are a, b, c, d and e.
    refused(
        lambda: dataclasses.replace(SMALL, mirror=True).build(TASK),
        "config.method.mirror",
        "exchanges right and left",
    )
    refused(
        lambda: SMALL.build(dataclasses.replace(TASK, crop=(32, 32, 1), margin=(4, 4, 0))),
        "config.data.crop",
        "is a picture",
    )
    wrong = dataclasses.replace(TASK, margin=(3, 3, 3))
    refused(lambda: SMALL.build(wrong), "config.data.margin", "not a multiple of 4")
