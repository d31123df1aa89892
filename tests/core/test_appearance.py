"""Images drawn from label maps: each effect alone against NumPy, and all of them together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.interpolate import BSpline

from jaxmark.config import Appearance
from jaxmark.core import appearance as drawing
from jaxmark.core.appearance import Contrast, Dice, appearance
from jaxmark.core.tissues import TISSUES

SHAPE, SPACING = (28, 26, 22), (1.0, 1.2, 1.5)
LABEL = {name: label for label, name in enumerate(TISSUES)}
FREE, MRA, CTA = {}, {"mra": 1.0}, {"cta": 1.0}


def only(**changes):
    """Settings with nothing but free intensities, and what is named."""
    off = {f.name: 0.0 for f in dataclasses.fields(Appearance) if isinstance(f.default, float)}
    return Appearance(**{"drawn": True, **off, **changes})


def head():
    """A brain with fluid, in bone, in air, with an upright artery and a vein: (X, Y, Z) each."""
    x, y, z = np.indices(SHAPE)
    tissues = np.full(SHAPE, LABEL["air"], np.uint8)
    tissues[2:-2, 2:-2, 2:] = LABEL["bone"]
    tissues[5:-5, 5:-5, 5:] = LABEL["white"]
    tissues[8:12, 8:12, 8:] = LABEL["csf"]
    tissues[18:20, 8:10] = LABEL["vein"]
    lumen = np.clip(3.5 - np.hypot(x - 14, y - 15), 0, 1).astype(np.float32)
    return lumen, tissues


def dice(number=0):
    return Dice(jax.random.key(number))


@functools.cache
def fields(number=0):
    return jax.jit(lambda: drawing.random_fields(dice(number), SHAPE, SPACING))()


@functools.partial(jax.jit, static_argnums=(1, 2))
def _contrasts(keys, settings, count):
    settings = only(**dict(settings))
    return jax.vmap(lambda key: drawing.draw_contrast(Dice(key), settings))(keys)


def contrasts(count=300, **changes):
    keys = jax.random.split(jax.random.key(1), count)
    found = _contrasts(keys, tuple(changes.items()), count)
    return Contrast(*(np.asarray(field) for field in found))


def a_contrast(kind=drawing._FREE, **changes):
    """One whose values are known."""
    values = {
        "kind": jnp.array(kind),
        "tissues": jnp.linspace(0.1, 0.6, len(TISSUES)),
        "arteries": jnp.array(2.0),
        "brain": jnp.array(0.5),
        "unit": jnp.array(1.0),
        "nothing": jnp.array(0.0),
        "window": jnp.array([-jnp.inf, jnp.inf]),
    }
    return Contrast(**{**values, **changes})


def drawn(settings, key=0, middle=None, maps=None):
    """Image and field of view of one head, without the first axis."""
    lumen, tissues = maps or head()
    draw = jax.jit(lambda k, *a: appearance(k, *a, settings, SPACING, middle))
    image, seen, stranger = draw(jax.random.key(key), lumen[None, ..., None], tissues[None])
    assert stranger.shape == (1,) and bool(stranger[0]) == (settings.strangers == 1)
    assert image.shape == (1, *SHAPE, 1) and image.dtype == jnp.float32
    assert seen.shape == (1, *SHAPE) and seen.dtype == bool
    return np.asarray(image[0, ..., 0]), np.asarray(seen[0])


def test_the_key_decides_and_cases_of_a_batch_do_not_know_each_other():
    lumen, tissues = (jnp.asarray(array) for array in head())
    mirrored = (lumen[::-1], tissues[::-1])
    draw = jax.jit(lambda k, *a: appearance(k, *a, Appearance(drawn=True), SPACING))

    def batch(key, *cases):
        lumens, labels = zip(*cases, strict=True)
        return draw(jax.random.key(key), jnp.stack(lumens)[..., None], jnp.stack(labels))

    both = batch(0, (lumen, tissues), (lumen, tissues))[0]
    np.testing.assert_allclose(batch(0, (lumen, tissues), mirrored)[0][0], both[0], atol=1e-5)
    np.testing.assert_allclose(batch(0, mirrored, (lumen, tissues))[0][1], both[1], atol=1e-5)
    np.testing.assert_allclose(batch(0, (lumen, tissues))[0][0], both[0], atol=1e-5)
    # Every case has its own appearance, and every step.
    assert np.abs(both[0] - both[1]).mean() > 0.02
    assert np.abs(both - batch(1, (lumen, tissues), (lumen, tissues))[0]).mean() > 0.02


def test_strangers_are_another_way_round_or_empty_or_noise():
    plain = {"drawn": True, "box": 0.0, "slab": 0.0, "gamma": 0.0, "contrast": 0.0, "noise": 0.0}
    lumen, tissues = head()

    def images(settings):
        """Of twelve keys."""
        draw = jax.jit(lambda k, *a: appearance(k, *a, settings, SPACING)[0][0, ..., 0])
        keys = (jax.random.key(key) for key in range(12))
        return [np.asarray(draw(key, lumen[None, ..., None], tissues[None])) for key in keys]

    ways = set()
    pair = images(Appearance(**plain)), images(Appearance(**plain, strangers=1.0))
    for own, other in zip(*pair, strict=True):
        same = {
            "upside down": np.abs(other[:, :, ::-1] - own).max() < 1e-3,
            "back to front": np.abs(other[:, ::-1] - own).max() < 1e-3,
            # What is elsewhere is the same but for blur and scale.
            "no arteries": np.corrcoef(other[lumen == 0], own[lumen == 0])[0, 1] > 0.9,
        }
        found = [name for name, is_so in same.items() if is_so]
        ways.add(found[0] if found else "noise")
    assert ways == {"upside down", "back to front", "no arteries", "noise"}


def test_intensities_are_those_of_the_modality():
    artery = {kind: contrasts(**settings) for kind, settings in (("mra", MRA), ("cta", CTA))}
    mra, cta, free = artery["mra"], artery["cta"], contrasts()
    for kind, found, fat in (("mra", mra, (30, 250)), ("cta", cta, (-120, -70))):
        values = found.tissues[:, LABEL["fat"]]
        assert values.min() >= fat[0] and values.max() <= fat[1] and np.ptp(values) > 40, kind
    assert mra.arteries.min() >= 150 and mra.arteries.max() <= 700
    assert cta.arteries.min() >= 200 and cta.arteries.max() <= 600
    np.testing.assert_allclose(
        free.brain, free.tissues[:, [LABEL["grey"], LABEL["white"]]].mean(1), rtol=1e-5
    )
    for found in (mra, cta, free):
        brain = found.tissues[:, [LABEL["grey"], LABEL["white"]]].max(1)
        assert (found.arteries > brain).all()
    # In CTA veins lie between brain and arteries.
    veins = cta.tissues[:, LABEL["vein"]]
    assert (veins >= 60).all() and (veins <= 0.9 * cta.arteries + 1e-3).all()
    assert np.isinf(cta.window).all() and (mra.nothing == 0).all()


def test_shares_of_modalities_black_blood_venous_contamination_and_windows():
    mixed = contrasts(mra=0.5, cta=0.3)
    np.testing.assert_allclose(np.bincount(mixed.kind) / 300, (0.5, 0.3, 0.2), atol=0.1)
    dark = contrasts(dark=1.0)
    assert (dark.arteries <= 0.6 * dark.brain).all()
    assert (contrasts(mra=1.0, dark=1.0).arteries >= 150).all()
    venous = contrasts(mra=1.0, venous=1.0)
    for name in ("vein", "sinus"):
        share = venous.tissues[:, LABEL[name]] / venous.arteries
        assert share.min() >= 0.85 and share.max() <= 1
    low, high = contrasts(cta=1.0, windowed=1.0).window.T
    assert (low >= -200).all() and (low <= 20).all() and (high >= 500).all() and high.max() <= 1000
    assert np.isinf(contrasts(mra=1.0, windowed=1.0).window).all()


def test_tissues_have_their_values_and_vary_within_but_air_does_not():
    _, tissues = head()
    contrast = a_contrast()
    plain = drawing.textured(dice(), contrast, jnp.asarray(tissues), fields(), only())
    np.testing.assert_array_equal(plain, np.asarray(contrast.tissues)[tissues])
    rough = drawing.textured(dice(), contrast, jnp.asarray(tissues), fields(), only(texture=0.2))
    change = np.asarray(rough - plain)
    assert np.abs(change[tissues == LABEL["air"]]).max() == 0
    relative = change[tissues == LABEL["white"]] / 0.5
    assert 0.01 < relative.std() < 0.4
    # It is smooth: neighbours differ by less than it varies.
    box = change[5:-5, 16:-5, 5:]
    assert np.abs(np.diff(box, axis=0)).mean() < box.std()


def test_random_fields_are_white_nodes_between_cubic_splines():
    shape, spacing = (64, 40, 30), (1.0, 1.5, 2.0)

    def draw(key):
        dice = Dice(key)
        found = drawing.random_fields(dice, shape, spacing)
        return found, {
            name: dice.uniform(f"{name}_mm", *mm) for name, mm in drawing._FIELDS.items()
        }

    keys = jax.random.split(jax.random.key(0), 30)
    found, apart = jax.device_get(jax.jit(jax.vmap(draw))(keys))
    for name, (least, most) in drawing._FIELDS.items():
        assert least <= apart[name].min() and apart[name].max() <= most
        # Wider ones have fewer nodes to average over.
        loose = 0.02 * np.sqrt(most)
        assert abs(found[name].mean()) < loose and abs(found[name].std() - 1) < loose, name
    # Correlation over a distance is the septic B-spline of it in nodes.
    septic = BSpline.basis_element(np.arange(9) - 4.0, extrapolate=False)
    fine = found["fine"]
    for voxels in (1, 3, 6):
        product = (fine[:, voxels:] * fine[:, :-voxels]).mean((1, 2, 3))
        places = voxels * spacing[0] / apart["fine"]
        expected = np.nan_to_num(septic(places)) / septic(0.0)
        np.testing.assert_allclose(product.mean(), expected.mean(), atol=0.04)


def test_arteries_lose_contrast_in_places_where_they_are_thin_and_along_z():
    lumen, _ = head()
    lumen = jnp.asarray(lumen)

    def kept(kind=drawing._MRA, number=0, **changes):
        contrast = a_contrast(kind)
        found = drawing.artery_contrast(
            dice(number), contrast, lumen, fields(number), only(**changes), SPACING
        )
        return np.broadcast_to(np.asarray(found), SHAPE)

    np.testing.assert_array_equal(kept(), 1)
    places = kept(fade=0.8)
    assert places.min() >= 0.2 and places.max() <= 1 and np.ptp(places) > 0.05
    thin = kept(thin=0.8)
    assert thin[14, 15, 10] > thin[14, 19, 10] > thin[4, 4, 10]
    # Beyond a plane upwards.
    upwards = [kept(number=n, saturated=1.0) for n in range(6)]
    for field in upwards:
        assert np.ptp(field, axis=(0, 1)).max() == 0 and field.max() <= 1 and field.min() >= 0.2
    assert sum((np.diff(field[0, 0]) <= 0).all() for field in upwards) >= 2
    # CTA has a fourth of it.
    np.testing.assert_allclose(1 - kept(drawing._CTA, fade=0.8), (1 - places) / 4, atol=1e-6)


def test_blur_is_a_gaussian_s_and_nothing_where_the_grid_is_coarser():
    lumen, _ = head()
    width = (0.9, 1.4, 0.6)
    found = drawing.along(
        jnp.asarray(lumen), *(drawing.gaussian(n, w) for n, w in zip(SHAPE, width, strict=True))
    )
    # Near an edge both take what lies inside.
    flat = {"mode": "constant", "truncate": 8.0}
    expected = ndimage.gaussian_filter(lumen, width, **flat)
    expected /= ndimage.gaussian_filter(np.ones(SHAPE), width, **flat)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    coarse = only(voxel_mm=(3.0, 3.0), slice_mm=(1.2, 1.2))
    x, y, z = drawing.resolutions(dice(), SHAPE, coarse, SPACING)
    # 3 mm on a grid of 1 mm: a Gaussian of half the root of 8 voxels.
    np.testing.assert_allclose(x, drawing.gaussian(SHAPE[0], 2**0.5), atol=1e-6)
    np.testing.assert_allclose(y, drawing.gaussian(SHAPE[1], 0.5 * (2.5**2 - 1) ** 0.5), atol=1e-6)
    np.testing.assert_allclose(z, np.eye(SHAPE[2]), atol=1e-6)
    rings = drawing.resolutions(dice(), SHAPE, dataclasses.replace(coarse, ringing=1.0), SPACING)
    edge = np.asarray(rings[0] @ (jnp.arange(SHAPE[0]) > 13))
    assert edge.max() > 1.03 and edge.min() < -0.03
    # What is constant stays so.
    for matrix in (x, y, z, *rings):
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)


def scan(kind, image, number=0, **changes):
    settings = only(**changes)
    contrast = a_contrast(kind)
    found = drawing.scanned(
        dice(number), contrast, jnp.asarray(image), fields(number), settings, SPACING
    )
    return np.asarray(found)


def test_noise_is_gaussian_or_rician_and_has_the_scanner_s_grain():
    flat = np.full(SHAPE, 0.5, np.float32)
    sigma = float(dice().uniform("noise", 0, 0.5))
    gaussian = scan(drawing._FREE, flat, noise=0.5) - 0.5
    assert abs(gaussian.std() / sigma - 1) < 0.03 and abs(gaussian.mean()) < 0.01
    magnitude = scan(drawing._MRA, 0 * flat, noise=0.5)
    # A magnitude without signal: Rayleigh's distribution.
    assert magnitude.min() >= 0
    assert abs(magnitude.mean() / (sigma * np.sqrt(np.pi / 2)) - 1) < 0.03
    # Grain as large as the voxels, of the same strength.
    grain = scan(drawing._FREE, flat, noise=0.5, voxel_mm=(3.0, 3.0), slice_mm=(3.0, 3.0)) - 0.5
    assert abs(grain.std() / sigma - 1) < 0.15
    neighbours = [(field[1:] * field[:-1]).mean() / field.var() for field in (gaussian, grain)]
    assert abs(neighbours[0]) < 0.05 and neighbours[1] > 0.6


def test_bias_is_smooth_and_ghosts_are_shifted_copies_but_not_in_cta():
    lumen, _ = head()
    flat = np.ones(SHAPE, np.float32)
    bias = scan(drawing._MRA, flat, bias=0.5)
    assert np.ptp(bias) > 0.02 and np.abs(np.diff(bias, axis=0)).max() < 0.2 * np.ptp(bias)
    np.testing.assert_allclose(scan(drawing._CTA, flat, bias=0.5), 1, atol=1e-5)

    far = float(dice().uniform("ghost_mm", 4, 25)) / SPACING[1]
    share = float(dice().uniform("ghost", 0.03, 0.25))
    moved = sum(
        ndimage.shift(lumen, (0, by, 0), order=1, mode="grid-constant") for by in (far, -far)
    )
    ghosts = scan(drawing._MRA, lumen, motion=1.0)
    np.testing.assert_allclose(ghosts, lumen + share * moved, atol=1e-5)
    np.testing.assert_allclose(scan(drawing._CTA, lumen, motion=1.0), lumen, atol=1e-6)

    far = float(dice().uniform("fold_at", 0.6, 0.9)) * SHAPE[1]
    share = float(dice().uniform("folded", 0.1, 0.5))
    # A ramp, whose ends fold onto each other.
    ramp = np.broadcast_to(np.arange(SHAPE[1], dtype=np.float32)[:, None], SHAPE)
    moved = sum(
        ndimage.shift(ramp, (0, by, 0), order=1, mode="grid-constant") for by in (far, -far)
    )
    np.testing.assert_allclose(
        scan(drawing._FREE, ramp, wrapped=1.0), ramp + share * moved, atol=1e-4
    )


def test_sharpening_overshoots_at_edges_and_the_window_cuts_off():
    lumen, _ = head()
    sharp = scan(drawing._CTA, lumen, sharpened=1.0)
    smooth = ndimage.gaussian_filter(
        lumen, [0.8 / min(s, 1.0) for s in SPACING], mode="nearest", truncate=8.0
    )
    strength = float(dice().uniform("sharpness", 0.3, 1.5))
    inner = (slice(6, -6),) * 3
    np.testing.assert_allclose(
        sharp[inner], (lumen + strength * (lumen - smooth))[inner], atol=1e-4
    )
    contrast = a_contrast(drawing._CTA, window=jnp.array([0.2, 0.7]))
    cut = drawing.scanned(dice(), contrast, jnp.asarray(lumen), fields(), only(), SPACING)
    np.testing.assert_allclose(cut, np.clip(lumen, 0.2, 0.7), atol=1e-6)


def process(image, number=0, contrast=None, **changes):
    lumen, tissues = head()
    contrast = contrast or a_contrast(nothing=jnp.array(-7.0))
    arrays = (jnp.asarray(image), jnp.asarray(lumen), jnp.asarray(tissues))
    return np.asarray(drawing.processed(dice(number), contrast, *arrays, only(**changes), SPACING))


def test_a_stripped_image_has_no_skull():
    _, tissues = head()
    image = np.random.default_rng(0).uniform(1, 2, SHAPE).astype(np.float32)
    np.testing.assert_array_equal(process(image), image)
    stripped = process(image, stripped=1.0)
    assert set(np.unique(stripped == image)) == {False, True}
    assert (stripped[stripped != image] == -7).all()
    brain = np.isin(tissues, [LABEL["white"], LABEL["csf"]])
    depth = ndimage.distance_transform_edt(brain, SPACING)
    outside = ndimage.distance_transform_edt(~brain, SPACING)
    lumen, _ = head()
    beside = ndimage.distance_transform_edt((lumen < 0.5) & (tissues != LABEL["vein"]), SPACING)
    assert (stripped[depth > 4] != -7).all()
    assert (stripped[(outside > 4) & (beside > 4)] == -7).all()


def test_a_thresholded_image_has_arteries_left_and_others_have_nothing_else():
    lumen, tissues = head()
    image = np.asarray(a_contrast().tissues)[tissues]
    image = image + lumen * (2.0 - image)
    found = process(image, thresholded=1.0)
    signal = (lumen * image).sum() / lumen.sum()
    level = 0.5 + float(dice().uniform("level", 0.2, 0.7)) * (signal - 0.5)
    np.testing.assert_array_equal(found, np.where(image < level, np.float32(-7), image))
    assert (found[lumen == 1] == 2).all() and (found[lumen == 0] == -7).mean() > 0.9
    for number in range(4):
        alone = process(image, number, vessels_only=1.0)
        distance = ndimage.distance_transform_edt(lumen == 0, SPACING)
        assert (alone[distance > 6] == -7).all()
        np.testing.assert_allclose(alone[14, 15], image[14, 15], atol=1e-3)


@pytest.mark.parametrize("number", range(3))
def test_fields_of_view_are_boxes_slabs_or_all(number):
    middle = jnp.array([14.0, 12.0, 11.0])

    def seen(**changes):
        found = drawing.field_of_view(dice(number), SHAPE, middle, only(**changes), SPACING)
        return np.asarray(found)

    assert seen().all()
    slab = seen(slab=1.0, slab_mm=(6.0, 12.0))
    assert (slab == slab[:1, :1]).all()
    assert 3 <= slab[0, 0].sum() <= 9
    box = seen(box=1.0, box_mm=(8.0, 8.0, 8.0))
    sides = [np.ptp(np.nonzero(box)[axis]) * s for axis, s in enumerate(SPACING)]
    assert all(8 - 2 * s <= side <= 12 for side, s in zip(sides, SPACING, strict=True))
    centre = np.array([n.mean() for n in np.nonzero(box)])
    np.testing.assert_allclose(centre, middle, atol=1)
    # Moved by at most a share of its sides, and turned without a change of volume.
    moved = seen(box=1.0, box_mm=(8.0, 8.0, 8.0), shift=0.25)
    aside = np.array([n.mean() for n in np.nonzero(moved)]) - centre
    assert 0.2 < np.abs(aside * SPACING).max() < 0.25 * 12 + 1.5
    turned = seen(box=1.0, box_mm=(8.0, 8.0, 8.0), tilt_degrees=40.0)
    assert not np.array_equal(turned, box)
    assert abs(turned.sum() / box.sum() - 1) < 0.3


def test_what_is_seen_has_the_percentiles_of_prepared_images_and_the_rest_is_padding():
    around = []
    for key in range(3):
        settings = only(**MRA, noise=0.2, box=1.0, box_mm=(14.0, 14.0, 14.0), tilt_degrees=10.0)
        image, seen = drawn(settings, key)
        assert seen.any() and not seen.all()
        values = image[::2, ::2, ::2][seen[::2, ::2, ::2]]
        np.testing.assert_allclose(np.percentile(values, (0.5, 99.5)), (0, 1), atol=1e-5)
        assert (image[~seen] == 0).all()
        image, seen = drawn(dataclasses.replace(settings, minimum_around=1.0), key)
        (outside,) = np.unique(image[~seen])
        values = image[::2, ::2, ::2][seen[::2, ::2, ::2]]
        np.testing.assert_allclose(outside, values.min(), atol=1e-6)
        around.append(outside)
    assert min(around) < -1e-3


def test_clipped_gamma_and_contrast_change_the_scaled_image():
    plain, _ = drawn(only(**MRA, noise=0.2))
    whole = dice_of_first(0)
    curved, _ = drawn(only(**MRA, noise=0.2, gamma=0.6))
    exponent = np.exp(float(whole.uniform("gamma", -0.6, 0.6)))
    expected = np.where(plain > 0, np.maximum(plain, 1e-9) ** exponent, plain)
    np.testing.assert_allclose(curved, expected, atol=2e-3)
    louder, _ = drawn(only(**MRA, noise=0.2, contrast=0.4))
    np.testing.assert_allclose(
        louder, plain * float(whole.uniform("contrast", 0.6, 1.4)), atol=1e-4
    )
    clipped, _ = drawn(only(**MRA, noise=0.2, clipped=1.0))
    limit = np.percentile(plain[::2, ::2, ::2], float(whole.uniform("clip_at", 97, 99.5)))
    np.testing.assert_allclose(clipped, np.minimum(plain, limit) / limit, atol=1e-4)
    assert clipped.max() == pytest.approx(1)


def dice_of_first(key):
    """Those of the first case of a batch."""
    return Dice(jax.random.fold_in(jax.random.key(key), 0))


@pytest.mark.parametrize("key", range(3))
def test_nothing_is_ever_not_a_number(key):
    lumen, tissues = head()
    nowhere = jnp.array([[500.0, 500.0, 500.0]])
    everything = {
        name: 1.0
        for name in "stripped thresholded vessels_only venous saturated ringing motion".split()
    }
    every = Appearance(drawn=True, **everything, box=1.0, slab=0.0)
    for maps, middle in (
        ((0 * lumen, tissues), None),
        ((0 * lumen, 0 * tissues), None),
        ((lumen, tissues), nowhere),
    ):
        for settings in (every, Appearance(drawn=True, box=1.0, slab=0.0, mra=1.0, cta=0.0)):
            image, seen = drawn(settings, key, middle, maps)
            assert np.isfinite(image).all() and np.abs(image).max() <= 100
    # A box that holds nothing shows nothing.
    assert not seen.any() and (image == 0).all()


def test_a_constant_image_is_zero():
    lumen, tissues = head()
    image, _ = drawn(only(), maps=(0 * lumen, 0 * tissues))
    np.testing.assert_array_equal(image, 0)
    # Few bright voxels, under half a percent: the least and the most are 0 and 1, as in the frame.
    dot = 0 * lumen
    dot[14, 14, 10] = 1
    image, _ = drawn(only(**MRA), maps=(dot, 0 * tissues))
    assert image[14, 14, 10] == pytest.approx(1) and abs(np.median(image)) < 1e-6
