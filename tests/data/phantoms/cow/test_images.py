"""The lumen has the volume and the labels of its tubes; the scans have the contrasts promised."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, map_coordinates
from scipy.spatial.transform import Rotation

from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import apply_affine
from jaxmark.data.phantoms.cow import images
from jaxmark.data.phantoms.cow.anatomy import BEYOND, Anatomy
from jaxmark.data.phantoms.cow.images import render_cta, render_mra
from jaxmark.data.phantoms.grids import Grid
from jaxmark.data.phantoms.lumen import Vessel, rasterize

# The mean head, LPS mm: the left of two, or the one in the middle.
MEAN_MM = {
    "C4/C5": (9.6, -10.5, -8.1),
    "ICA terminus": (15.0, 0.0, 3.5),
    "M1/M2": (28.6, -7.0, 3.6),
    "A1/A2": (1.6, -6.0, 5.6),
    "A2/A3": (2.5, -21.0, 27.0),
    "BA tip": (0.0, 11.8, 0.3),
    "P2A/P2P": (20.0, 22.0, 6.0),
    "P1/P2A": (6.8, 9.7, 1.8),
    "ICA/PCoA": (10.7, -0.8, 0.5),
    "ICA/OA": (9.1, -8.9, -3.1),
}
VERTEBRAL_MM = np.array([0.0, 14.4, -24.1])
RENDERERS = [render_mra, render_cta]


def make_anatomy() -> Anatomy:
    places = []
    for name in COW19.landmarks:
        place = np.array(MEAN_MM[name.removesuffix(" R").removesuffix(" L")])
        places.append(place * (-1, 1, 1) if name.endswith(" R") else place)
    return Anatomy(np.array(places), VERTEBRAL_MM, np.ones(20, bool), np.zeros(2, bool), np.eye(3))


def tube(start, end, radius, segment=-1, travelled=(0.0, 50.0)) -> Vessel:
    count = int(np.linalg.norm(np.subtract(end, start)) / 0.4) + 2
    points, way = np.linspace(start, end, count), np.linspace(*travelled, count)
    return Vessel("tube", segment, points, np.full(count, radius), way)


def make_vessels(anatomy: Anatomy) -> list[Vessel]:
    """Straight tubes: the circle's larger arteries, and thin ones far along the way."""
    at = dict(zip(COW19.landmarks, anatomy.landmarks_mm, strict=True))
    wide = {"C5": (2.2, 75, 80), "C6": (2.1, 80, 88), "C7": (2.0, 88, 95), "M1": (1.5, 95, 115)}
    vessels = [tube(anatomy.vertebral_mm, at["BA tip"], 1.7, COW19.segment("BA"), (50, 80))]
    for side in "RL":
        for name, (radius, first, last) in wide.items():
            index = COW19.segment(f"{name} {side}")
            start, end = (at[landmark] for landmark in COW19.segments[index].ends)
            vessels.append(tube(start, end, radius, index, (first, last)))
        start = at[f"M1/M2 {side}"]
        vessels.append(tube(start, start + (np.sign(start[0]) * 10, 20, 20), 0.7, -1, (140, 180)))
    return vessels


def make_grid(shape, spacing, centre=(0.0, 0.0, 5.0)) -> Grid:
    matrix = np.diag([*np.broadcast_to(spacing, 3), 1.0])
    matrix[:3, 3] = np.array(centre) - (np.array(shape) - 1) / 2 * np.diag(matrix)[:3]
    return Grid(shape, matrix)


def test_a_grid_is_axis_aligned():
    for entry, value in (((0, 0), -1.0), ((0, 1), 0.1)):
        matrix = np.eye(4)
        matrix[entry] = value
        with pytest.raises(ValueError, match="diagonal"):
            Grid((4, 4, 4), matrix)


# --- the lumen


@pytest.mark.parametrize("radius", [0.4, 0.8, 2.2])
@pytest.mark.parametrize("spacing", [0.4, (0.5, 0.5, 0.8), 1.1, 2.5])
def test_coverage_adds_up_to_the_volume_of_the_tubes(spacing, radius):
    """Of tubes that cross the grid from bottom to top, as an end is rounder on coarse grids."""
    grid = make_grid(tuple((24 / np.broadcast_to(spacing, 3)).astype(int)), spacing)
    rng = np.random.default_rng(0)
    drawn = true = 0.0
    for _ in range(8):  # tubes lie differently to the voxels
        tilt = rng.uniform(-0.35, 0.35, 2)
        middle = np.array([0, 0, 5]) + rng.uniform(-2, 2, 3)
        half = 25 * np.array([*tilt, 1])
        lumen = rasterize([tube(middle - half, middle + half, radius)], grid, BEYOND)
        assert 0 <= lumen.coverage.min() <= lumen.coverage.max() <= 1
        drawn += lumen.coverage.sum() * grid.spacing_mm.prod()
        height = grid.shape[2] * grid.spacing_mm[2]
        true += np.pi * radius**2 * height * np.sqrt(1 + tilt @ tilt)
    assert drawn == pytest.approx(true, rel=0.03)


def test_the_lumen_says_what_lies_at_each_place():
    grid = make_grid((48, 40, 24), 0.5)
    first, last = np.array([-9.0, -6.0, 3.0]), np.array([9.0, 5.0, 6.0])
    vessel = tube(first, last, 1.3, COW19.segment("M1 L"), (40.0, 70.0))
    vessel = replace(vessel, radii_mm=np.linspace(1.0, 1.6, len(vessel.points_mm)))
    lumen = rasterize([vessel], grid, BEYOND)

    centres = np.stack(np.meshgrid(*grid.axes_mm, indexing="ij"), -1)
    along = np.clip((centres - first) @ (last - first) / ((last - first) @ (last - first)), 0, 1)
    distance = np.linalg.norm(centres - first - along[..., None] * (last - first), axis=-1)
    inside = distance < 1.0 + 0.6 * along
    np.testing.assert_array_equal(lumen.segment, (COW19.segment("M1 L") + 1) * inside)
    np.testing.assert_allclose(lumen.travelled_mm[inside], 40 + 30 * along[inside], atol=0.15)
    np.testing.assert_allclose(lumen.radius_mm[inside], 1.0 + 0.6 * along[inside], atol=0.01)
    unit = (last - first) / np.linalg.norm(last - first)
    np.testing.assert_allclose(lumen.tangent[inside], np.tile(unit, (inside.sum(), 1)), atol=0.001)
    assert not lumen.tangent[~inside].any()
    np.testing.assert_allclose(lumen.coverage[distance < 0.7], 1)
    assert not lumen.coverage[distance > 2.2].any()


def test_where_tubes_overlap_the_nearest_in_units_of_its_radius_wins():
    grid = make_grid((40, 40, 9), 0.25, (0, 0, 0))
    thick = tube((0, 0, -9), (0, 0, 9), 3.0, 0)
    thin = tube((2.5, 0, -9), (2.5, 0, 9), 1.0)
    for vessels in ([thick, thin], [thin, thick]):
        label = rasterize(vessels, grid, BEYOND).segment[:, 20, 4]
        x = grid.axes_mm[0]
        # Between the axes at 0 and 2.5 both are as near, in radii, at x = 0.75 * 2.5.
        np.testing.assert_array_equal(label[(x > -2.9) & (x < 1.8)], 1)
        np.testing.assert_array_equal(label[(x > 1.95) & (x < 3.4)], BEYOND)


def test_a_part_of_the_grid_shows_a_part_of_the_lumen():
    vessels = make_vessels(make_anatomy())
    whole = make_grid((60, 50, 40), 1.2)
    matrix = whole.ijk_to_lps.copy()
    matrix[:3, 3] = [axis[n] for axis, n in zip(whole.axes_mm, (20, 15, 10), strict=True)]
    part = rasterize(vessels, Grid((25, 20, 15), matrix), BEYOND)
    full = rasterize(vessels, whole, BEYOND)
    window = np.s_[20:45, 15:35, 10:25]
    assert 0 < np.count_nonzero(part.segment) < np.count_nonzero(full.segment)
    np.testing.assert_allclose(part.coverage, full.coverage[window], atol=1e-4)
    np.testing.assert_array_equal(part.segment, full.segment[window])
    assert not rasterize([], whole, BEYOND).coverage.any()


# --- the scans


@pytest.mark.parametrize("render", RENDERERS)
def test_a_scan_is_a_function_of_the_seed(render):
    anatomy, grid = make_anatomy(), make_grid((24, 20, 16), 4.0)
    lumen = rasterize(make_vessels(anatomy), grid, BEYOND)
    a, b, c = (render(np.random.default_rng(seed), lumen, grid, anatomy) for seed in (1, 1, 2))
    assert a.dtype == np.int16
    np.testing.assert_array_equal(a, b)
    assert np.mean(a != c) > 0.8


@pytest.mark.parametrize("render", RENDERERS)
def test_the_same_seed_gives_the_same_head_on_another_grid(render):
    anatomy = make_anatomy()
    vessels = make_vessels(anatomy)

    def scan(seed, shape, spacing):
        grid = make_grid(shape, spacing)
        return render(np.random.default_rng(seed), rasterize(vessels, grid, BEYOND), grid, anatomy)

    fine = scan(3, (96, 78, 72), 1.0).reshape(32, 3, 26, 3, 24, 3).mean((1, 3, 5)).ravel()
    same, other = (
        np.corrcoef(fine, scan(seed, (32, 26, 24), 3.0).ravel())[0, 1] for seed in (3, 4)
    )
    assert same > 0.93
    assert other < same - 0.1


@pytest.mark.parametrize("render", RENDERERS)
def test_vessels_are_brighter_than_what_is_around_them(render):
    anatomy, grid = make_anatomy(), make_grid((90, 80, 60), 0.8, (0, 0, 8))
    vessels = make_vessels(anatomy)
    lumen = rasterize(vessels, grid, BEYOND)
    for seed in range(3):
        scan = render(np.random.default_rng(seed), lumen, grid, anatomy)
        for name in ("M1 R", "M1 L"):  # the basilar artery and the siphon lie at bone
            inside = lumen.segment == COW19.segment(name) + 1
            near = binary_dilation(inside, iterations=4) & ~binary_dilation(inside, iterations=2)
            around = scan[near & (lumen.coverage == 0)]
            assert np.median(scan[inside]) > np.percentile(around, 95)


def test_mra_is_bright_where_blood_is_fresh_and_fades_on_its_way():
    anatomy, grid = make_anatomy(), make_grid((120, 80, 80), 0.6, (0, 0, 2))
    lumen = rasterize(make_vessels(anatomy), grid, BEYOND)
    core = binary_erosion(lumen.segment > 0)
    fresh = core & (lumen.segment <= 20)
    late = (lumen.segment == BEYOND) & (lumen.coverage > 0.9) & (lumen.travelled_mm > 150)
    assert fresh.sum() > 1000
    assert late.sum() > 30
    for seed in range(4):
        scan = render_mra(np.random.default_rng(seed), lumen, grid, anatomy)
        background = np.median(scan[lumen.coverage == 0])
        assert 5.5 < np.median(scan[fresh]) / background < 7.5
        assert 1.4 < np.median(scan[late]) / background < 4.0


def test_noise_of_an_mra_is_rician():
    grid = make_grid((24, 24, 24), 1.0, (0, 0, 300))  # in the air above the head
    lumen = rasterize([], grid, BEYOND)
    for seed in range(3):
        air = render_mra(np.random.default_rng(seed), lumen, grid, make_anatomy())
        assert air.min() >= 0
        # Rayleigh: mean / SD = sqrt(pi / 2) / sqrt(2 - pi / 2); mean = sigma sqrt(pi / 2).
        assert air.mean() / air.std() == pytest.approx(1.913, rel=0.04)
        assert 12 < 100 / (air.mean() / 1.2533) < 18.5


def test_cta_has_the_hounsfield_units_of_tissues():
    anatomy = make_anatomy()
    brain = make_grid((20, 20, 20), 0.8, (26, 12, 30))
    air = make_grid((16, 16, 16), 1.0, (0, 0, 300))
    base = make_grid((80, 60, 40), 1.0, (0, 0, -15))
    around = make_grid((100, 70, 50), 0.6, (0, 0, 0))
    vessels = make_vessels(anatomy)
    lumens = []
    for seed in range(6):

        def scan(grid, vessels, seed=seed):
            lumen = rasterize(vessels, grid, BEYOND)
            return lumen, render_cta(np.random.default_rng(seed), lumen, grid, anatomy)

        tissue = scan(brain, [])[1]
        assert 34 < np.median(tissue) < 44
        assert 10 < np.diff(np.percentile(tissue, (16, 84)))[0] / 2 < 18
        nothing = scan(air, [])[1]
        assert -1024 <= nothing.min()
        assert -1005 < nothing.mean() < -990
        skull = scan(base, [])[1]
        assert 0.03 < np.mean(skull > 600) < 0.5
        assert np.percentile(skull[skull > 600], 95) < 1500
        assert np.mean((skull > 245) & (skull < 576)) > 0.01  # edges of bone look like arteries
        assert np.mean(skull < -900) > 0.002  # sinuses
        lumen, arteries = scan(around, vessels)
        core = arteries[binary_erosion(lumen.segment > 0) & (lumen.coverage == 1)]
        lumens.append(np.median(core))
        assert np.std(core) < 45
    assert 225 < min(lumens) < max(lumens) < 585
    assert np.ptp(lumens) > 80


def test_the_head_turns_with_the_person():
    anatomy = make_anatomy()
    turn = Rotation.from_euler("xyz", (35, -10, 15), degrees=True).as_matrix()
    shift = np.array([5.0, -8.0, 12.0])
    turned = replace(
        anatomy,
        landmarks_mm=anatomy.landmarks_mm @ turn.T + shift,
        vertebral_mm=turn @ anatomy.vertebral_mm + shift,
        rotation=turn,
    )
    grid = make_grid((60, 60, 60), 1.4, (0, -5, 0))
    places = np.random.default_rng(1).uniform((-25, -25, -28), (25, 20, 15), (4000, 3))

    def hounsfield(anatomy, places):
        scan = render_cta(np.random.default_rng(0), rasterize([], grid, BEYOND), grid, anatomy)
        ijk = apply_affine(np.linalg.inv(grid.ijk_to_lps), places)
        return map_coordinates(scan.astype(float), ijk.T, order=1)

    before = hounsfield(anatomy, places)
    followed = np.corrcoef(before, hounsfield(turned, places @ turn.T + shift))[0, 1]
    left_behind = np.corrcoef(before, hounsfield(turned, places))[0, 1]
    assert followed > 0.84
    assert left_behind < 0.4


def test_plaques_lie_at_the_wall_of_the_siphon():
    """A case is calcified or not; what is brighter than in one without plaques touches a wall."""
    anatomy, grid = make_anatomy(), make_grid((60, 50, 40), 0.7, (0, -6, -4))
    lumen = rasterize(make_vessels(anatomy), grid, BEYOND)
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(20):
        image = np.zeros(grid.shape, np.float32)
        plaque = images._draw_plaque(rng, anatomy)
        images._paint_plaque(image, lumen, grid, plaque)
        if image.any():
            found += 1
            wall = binary_dilation(np.abs(lumen.coverage - 0.5) < 0.3, iterations=1)
            assert wall[image == image.max()].any()
            assert 0.5 * 600 < image.max() <= 1200
    assert found > 10
