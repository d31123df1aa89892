"""Random views of a batch: all that belongs to a case moves together, by what the settings say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.interpolate import BSpline

from jaxmark.config import Appearance, Augment
from jaxmark.core import augmentation
from jaxmark.core.anatomy import Scheme, Segment, scheme_of
from jaxmark.core.heatmaps import decode, gaussians
from jaxmark.core.tissues import TARGET
from jaxmark.methods.method import BY_LANDMARK, BY_SEGMENT, LABELS, Batch, Task
from jaxmark.methods.views import augmented
from jaxmark.system.errors import InputError

CROP, MARGIN, SPACING = (16, 14, 12), (4, 4, 4), (1.0, 1.2, 1.5)
FULL = tuple(n + 2 * m for n, m in zip(CROP, MARGIN, strict=True))
TASK = Task(scheme_of(("a",)), CROP, MARGIN, SPACING, Augment(0))
# A pair, one in the middle, and vessels to the middle from either side. Segments come in another
# order than landmarks.
SIDES = Scheme(
    "sides",
    ("r", "l", "m"),
    (("r", "l"),),
    (Segment("stem", ("m",)), Segment("right", ("r", "m")), Segment("left", ("l", "m"))),
)


def volumes(batch=3, landmarks=1, shape=FULL):
    """Volumes that show their landmark as a spot, so that decoding tells where it went."""
    centre = np.array([(n - 1) / 2 for n in shape])
    points = centre + np.random.default_rng(0).uniform(-1, 1, (batch, landmarks, 3))
    points = jnp.asarray(points, jnp.float32)
    return gaussians(points, shape, SPACING, 2.0), points


def augment(key, image, points, task=TASK, **changes):
    """Image and landmarks of a view."""
    task = dataclasses.replace(task, augment=Augment(**{"translation_voxels": 0, **changes}))
    known = jnp.ones(points.shape[:2], bool)
    view = augmented(task, Batch(image, points, known, ~known), key)
    return view.image, view.landmarks_ijk


@pytest.mark.parametrize(
    "settings",
    [
        {"translation_voxels": 3},
        {"translation_voxels": 2, "rotation_degrees": 25.0},
        {"translation_voxels": 1, "rotation_degrees": 10.0, "scale": 0.15},
    ],
)
def test_landmarks_follow_the_volume(settings):
    image, points = volumes()
    found, moved = jax.jit(lambda k: augment(k, image, points, **settings))(jax.random.key(3))
    assert found.shape == (3, *CROP, 1) and found.dtype == jnp.float32
    _, seen, *_ = decode(found, lambda x: x, spacing_mm=SPACING, sigma_mm=2.0, softmax=False)
    np.testing.assert_allclose(seen * np.array(SPACING), moved * np.array(SPACING), atol=0.2)
    # Something did move, and each volume by its own amount.
    shift = np.asarray(moved - (points - jnp.array(MARGIN)))
    assert np.abs(shift).max() > 0.5 and not np.allclose(shift[0], shift[1])


ELASTIC = {"elastic_mm": 1.0, "elastic_grid_mm": 8.0}


@pytest.mark.parametrize("others", [{}, {"rotation_degrees": 20.0, "flip": 0.5}])
def test_landmarks_follow_a_bent_volume(others):
    # Coordinates as intensities: bent, they say at each voxel where it came from.
    task = dataclasses.replace(TASK, scheme=scheme_of(("a", "b", "c", "d")))
    _, points = volumes(landmarks=4)
    axes = jnp.stack(jnp.meshgrid(*(jnp.arange(float(n)) for n in FULL), indexing="ij"), -1)
    channels = jnp.tile(axes, (3, 1, 1, 1, 1))
    found, moved = jax.jit(lambda k: augment(k, channels, points, task, **others, **ELASTIC))(
        jax.random.key(2)
    )
    for case in range(3):
        back = np.stack(
            [
                ndimage.map_coordinates(found[case, ..., c], np.asarray(moved[case]).T, order=3)
                for c in range(3)
            ],
            -1,
        )
        np.testing.assert_allclose(back, points[case], atol=0.02)
    # It is not a turned volume alone.
    _, straight = augment(jax.random.key(2), channels, points, task, **others)
    assert 0.1 < np.abs(moved - straight).max() <= 1.0


def test_a_bend_is_a_cubic_spline_of_its_coefficients():
    n, m, spacing = 20, 7, 1.5
    bend = np.random.default_rng(3).normal(size=(1, m, 1, 1, 3)).astype(np.float32)
    at = np.array([0.0, 0.3, 7.9, 18.2, 19.0])
    basis = augmentation.spline_basis(jnp.asarray(at), n, m)
    one = jnp.ones((len(at), 1))
    found = augmentation.displacements(jnp.asarray(bend), basis[None], one[None], one[None])[0]
    # Knots of scipy's spline lie at the ends of the intervals between the first and last voxel.
    step = (n - 1) / (m - 3)
    spline = BSpline(np.arange(-3, m + 1) * step, bend[0, :, 0, 0], 3)
    np.testing.assert_allclose(found, spline(at), atol=1e-5)
    assert augmentation.bend_controls((n, n, 1), (spacing,) * 3, 7.2) == (6, 6, 1)
    assert augmentation.bend_controls((n, n, 4), (spacing,) * 3, 7.2) == (6, 6, 1)


def test_pictures_bend_in_their_plane():
    task = dataclasses.replace(TASK, crop=(16, 14, 1), margin=(4, 4, 0))
    _, points = volumes(shape=(24, 22, 1))
    points = points.at[..., 2].set(0.0)
    image = gaussians(points, (24, 22, 1), SPACING, 2.0)
    found, moved = augment(jax.random.key(1), image, points, task, **ELASTIC)
    assert found.shape == (3, 16, 14, 1, 1)
    np.testing.assert_array_equal(moved[..., 2], 0)
    bent = np.abs(moved - (points - jnp.array(task.margin)))[..., :2]
    assert 0.1 < bent.max() <= 1.0
    _, seen, *_ = decode(found, lambda x: x, spacing_mm=SPACING, sigma_mm=2.0, softmax=False)
    np.testing.assert_allclose(seen[..., :2], moved[..., :2], atol=0.25)


def test_the_strongest_bend_allowed_does_not_fold():
    # The worst case: coefficients at both ends of what they may be, next to each other.
    crop, spacing, grid = (33, 33, 33), (1.0,) * 3, 8.0
    m = augmentation.bend_controls(crop, spacing, grid)
    signs = jnp.indices(m).sum(0) % 2 * 2.0 - 1
    bend = jnp.broadcast_to(signs[..., None], (1, *m, 3)) * (grid / 8)
    points = jnp.asarray(np.random.default_rng(0).uniform(0, 32, (1, 200, 3)), jnp.float32)
    y = augmentation.unbent(points, bend, crop, spacing)
    bases = (augmentation.spline_basis(y[..., a], crop[a], m[a]) for a in range(3))
    np.testing.assert_allclose(y + augmentation.displacements(bend, *bases), points, atol=1e-3)


def test_nothing_set_is_the_centre_crop():
    image, points = volumes()
    found, moved = augment(jax.random.key(0), image, points)
    np.testing.assert_array_equal(found, augmentation.centre_crop(image, MARGIN))
    np.testing.assert_array_equal(moved, points - jnp.array(MARGIN))


def test_centre_crop_without_margin_is_everything():
    image, _ = volumes()
    np.testing.assert_array_equal(augmentation.centre_crop(image, (0, 0, 0)), image)


def test_without_a_margin_along_an_axis_nothing_moves_along_it():
    task = dataclasses.replace(TASK, crop=(16, 14, 20), margin=(4, 4, 0))
    image, points = volumes()
    for seed in range(20):
        _, moved = augment(jax.random.key(seed), image, points, task, translation_voxels=2)
        np.testing.assert_array_equal(moved[..., 2], points[..., 2])


def test_pictures_turn_about_their_normal_and_stay_flat():
    task = dataclasses.replace(TASK, crop=(16, 14, 1), margin=(4, 4, 0))
    image, points = volumes(shape=(24, 22, 1))
    points = points.at[..., 2].set(0.0)
    image = gaussians(points, (24, 22, 1), SPACING, 2.0)
    found, moved = augment(jax.random.key(1), image, points, task, rotation_degrees=40.0)
    assert found.shape == (3, 16, 14, 1, 1)
    np.testing.assert_allclose(moved[..., 2], 0, atol=1e-5)
    turned = np.linalg.norm((moved - (points - jnp.array(task.margin)))[..., :2], axis=-1)
    assert turned.max() > 0.2
    _, seen, *_ = decode(found, lambda x: x, spacing_mm=SPACING, sigma_mm=2.0, softmax=False)
    np.testing.assert_allclose(seen[..., :2], moved[..., :2], atol=0.2)


def sided(count=8):
    """Cases with a spot a landmark, of their own brightness, and targets of every kind."""
    rng = np.random.default_rng(2)
    points = np.array([[8.0, 11, 9], [17, 12, 10], [12, 8, 12]]) + rng.uniform(-1, 1, (count, 3, 3))
    points = jnp.asarray(points, jnp.float32)
    spots = gaussians(points, FULL, SPACING, 1.5) * jnp.array([1.0, 0.6, 0.3])
    # Around each landmark the voxels of a label of its own; the last one is no segment.
    labels = np.zeros((count, *FULL), np.uint8)
    for k, label in enumerate((2, 3, 4)):
        labels[np.asarray(spots[..., k]) > 0.5 * (1.0, 0.6, 0.3)[k]] = label
    present = jnp.asarray(rng.random((count, 3)) < 0.5)
    targets = {
        "map": jnp.asarray(labels),
        "segment": jnp.tile(jnp.array([1.0, 2.0, 3.0]), (count, 1)),
        "landmark": jnp.tile(jnp.array([5, 6, 7]), (count, 1)),
    }
    return Batch(spots.sum(-1, keepdims=True), points, present, ~present, targets)


@pytest.mark.parametrize("turn", [0.0, 15.0])
def test_a_mirror_image_exchanges_right_and_left_in_all_that_is_known(turn):
    kinds = {"map": LABELS, "segment": BY_SEGMENT, "landmark": BY_LANDMARK}
    changes = Augment(1, rotation_degrees=turn, flip=0.5)
    task = Task(SIDES, CROP, MARGIN, SPACING, changes, targets=kinds)
    data = sided()
    plain = dataclasses.replace(task, augment=dataclasses.replace(changes, flip=0.0))
    view, straight = (
        jax.jit(lambda b, t=t: augmented(t, b, jax.random.key(4)))(data) for t in (task, plain)
    )
    # The other random changes are the same.
    flipped = np.abs(np.asarray(view.image - straight.image)).max((1, 2, 3, 4)) > 1e-3
    assert 0 < flipped.sum() < len(flipped)
    exchange, last = [1, 0, 2], CROP[0] - 1
    for case, is_flipped in enumerate(flipped):
        new, old = (jax.tree.map(lambda x, case=case: np.asarray(x)[case], v)
                    for v in (view, straight))  # fmt: skip
        # Two programs may round otherwise.
        same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        if not is_flipped:
            jax.tree.map(same, new, old)
            continue
        same(new.image, old.image[::-1])
        expected = old.landmarks_ijk[exchange] * [-1, 1, 1] + [last, 0, 0]
        np.testing.assert_allclose(new.landmarks_ijk, expected, atol=1e-4)
        np.testing.assert_array_equal(new.present, old.present[exchange])
        np.testing.assert_array_equal(new.absent, old.absent[exchange])
        # 4 is no segment's label: it stays.
        renamed = np.array([0, 1, 3, 2, 4])[old.targets["map"][::-1]]
        np.testing.assert_array_equal(new.targets["map"], renamed)
        assert new.targets["map"].dtype == np.uint8
        np.testing.assert_array_equal(new.targets["segment"], [1.0, 3.0, 2.0])
        np.testing.assert_array_equal(new.targets["landmark"], [6, 5, 7])


def test_labels_follow_the_image_by_the_nearest_voxel():
    task = Task(
        SIDES, CROP, MARGIN, SPACING, Augment(1, rotation_degrees=15), targets={"map": LABELS}
    )
    data = sided()
    data = data.replace(targets={"map": data.targets["map"]})
    view = jax.jit(lambda b: augmented(task, b, jax.random.key(0)))(data)
    labels = np.asarray(view.targets["map"])
    assert set(np.unique(labels)) == {0, 2, 3, 4}
    for case in range(len(labels)):
        for k, label in enumerate((2, 3, 4)):
            middle = np.argwhere(labels[case] == label).mean(0)
            np.testing.assert_allclose(middle, view.landmarks_ijk[case, k], atol=0.8)


def test_translation_stays_within_its_bound_and_reaches_it():
    image, points = volumes(batch=1)
    shifts = []
    for seed in range(60):
        _, moved = augment(jax.random.key(seed), image, points, translation_voxels=2)
        shifts.append(np.asarray(moved - (points - jnp.array(MARGIN)))[0, 0])
    shifts = np.array(shifts)
    assert np.array_equal(shifts, shifts.round())
    assert shifts.min() == -2 and shifts.max() == 2


def test_a_turned_view_agrees_with_scipy():
    image = np.random.default_rng(1).normal(size=(1, *FULL, 1)).astype(np.float32)
    affine = augmentation.random_affines(jax.random.key(5), 1, degrees=20.0, scale=0.1)
    offset = jnp.array([[0.5, -1.25, 0.75]])
    view = augmentation.View(affine, offset)
    found = augmentation.view_image(jnp.asarray(image), view, margin=MARGIN, spacing_mm=SPACING)
    a = np.asarray(affine[0], np.float64)
    linear = np.diag(1 / np.array(SPACING)) @ a @ np.diag(SPACING)
    centre = (np.array(CROP) - 1) / 2
    expected = ndimage.affine_transform(
        image[0, ..., 0].astype(np.float64),
        linear,
        centre + np.array(MARGIN) + np.asarray(offset[0]) - linear @ centre,
        output_shape=CROP,
        order=1,
        mode="nearest",
    )
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=2e-3)


def test_rotations_are_rigid_in_millimetres_and_bounded():
    matrices = np.asarray(
        augmentation.random_affines(jax.random.key(0), 200, degrees=30.0, scale=0.0)
    )
    np.testing.assert_allclose(
        matrices @ matrices.swapaxes(1, 2), np.tile(np.eye(3), (200, 1, 1)), atol=1e-5
    )
    angle = np.degrees(np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert 25 < angle.max() <= 30.01
    scaled = np.asarray(augmentation.random_affines(jax.random.key(0), 200, degrees=0.0, scale=0.2))
    factor = np.cbrt(np.linalg.det(scaled))
    assert 0.8 <= factor.min() < 0.85 and 1.15 < factor.max() <= 1.2


def test_intensity_changes_leave_landmarks_alone():
    image, points = volumes()
    found, moved = augment(
        jax.random.key(1), image, points, contrast=0.2, brightness=0.1, noise=0.05
    )
    np.testing.assert_array_equal(moved, points - jnp.array(MARGIN))
    plain = augmentation.centre_crop(image, MARGIN)
    assert 0.01 < np.abs(np.asarray(found - plain)).mean() < 0.3


def label_maps(dtype=jnp.uint8):
    """A batch of two brains with an artery through the landmark, as label maps."""
    image, points = volumes(batch=2, landmarks=2)
    share = (image[..., :1] * 255).round()
    share = share.astype(dtype) if dtype == jnp.uint8 else share / 255
    known = jnp.array([[True, True], [True, False]])
    tissues = jnp.full((2, *FULL), 8, jnp.uint8).at[:, :12].set(6)
    return Batch(share, points, known, ~known, {TARGET: tissues})


def drawn(batch, key=0, translation=3, **changes):
    settings = Appearance(drawn=True, **changes)
    scheme = scheme_of(("a", "b"))
    changed = Augment(translation, rotation_degrees=10.0, appearance=settings)
    task = dataclasses.replace(TASK, scheme=scheme, augment=changed)
    return jax.jit(lambda key: augmented(task, batch, key))(jax.random.key(key))


def test_an_image_is_drawn_from_label_maps_where_the_view_has_moved_them():
    batch = label_maps()
    # Little but arteries: they say where the landmark is.
    alone = {"vessels_only": 1.0, "mra": 1.0, "cta": 0.0, "noise": 0.0, "wrapped": 0.0}
    view = drawn(batch, **alone, motion=0.0, slab=0.0, box=0.0, thresholded=0.0, stripped=0.0)
    assert view.image.shape == (2, *CROP, 1) and view.image.dtype == jnp.float32
    assert not view.targets
    for image, place in zip(view.image[..., 0], view.landmarks_ijk[:, 0], strict=True):
        weight = np.maximum(np.asarray(image), 0) ** 2
        centre = ndimage.center_of_mass(weight)
        np.testing.assert_allclose(centre, place, atol=1.0)
    np.testing.assert_array_equal(view.present, batch.present)
    # 255 of a byte is all of a voxel.
    floats = drawn(
        label_maps(jnp.float32),
        **alone,
        motion=0.0,
        slab=0.0,
        box=0.0,
        thresholded=0.0,
        stripped=0.0,
    )
    np.testing.assert_allclose(floats.image, view.image, atol=1e-3)


def test_landmarks_outside_of_the_field_of_view_are_unknown():
    batch = label_maps()
    # Two landmarks that no box of 2 mm holds both.
    apart = batch.landmarks_ijk + jnp.array([[0.0, 0, 0], [5, 5, 0]])
    batch = batch.replace(landmarks_ijk=apart, present=jnp.ones((2, 2), bool))
    batch = batch.replace(absent=jnp.zeros((2, 2), bool))
    box = {"box": 1.0, "slab": 0.0, "box_mm": (2.0, 2.0, 2.0), "shift": 0.0}
    view = drawn(batch, **box)
    assert not view.present.any() and not view.absent.any()
    assert drawn(batch, **box, hide_unseen=False).present.all()
    large = {**box, "box_mm": (100.0, 100.0, 100.0)}
    assert drawn(batch, **large).present.all()
    # What is absent is so in every field of view.
    absent = batch.replace(present=jnp.zeros((2, 2), bool), absent=jnp.ones((2, 2), bool))
    assert drawn(absent, **box).absent.all()


def test_images_are_no_label_maps():
    batch = label_maps().replace(targets={})
    with pytest.raises(InputError, match="config.augment.appearance.drawn: needs batches of label"):
        drawn(batch)


def test_label_maps_are_not_mirrored_by_segments_and_their_view_is_the_landmarks():
    batch = label_maps()
    task = dataclasses.replace(
        TASK, scheme=SIDES, augment=Augment(0, flip=1.0, appearance=Appearance(drawn=True))
    )
    points = jnp.zeros((2, 3, 3)) + jnp.array([8.0, 9, 10])
    known = jnp.array([[True, False, True]] * 2)
    batch = batch.replace(landmarks_ijk=points, present=known, absent=~known)
    view = augmented(task, batch, jax.random.key(0))
    # Right and left have changed places.
    assert not view.present[:, 0].any() and view.absent[:, 0].all()
    assert np.isfinite(np.asarray(view.image)).all()
