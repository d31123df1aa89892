"""Cine slices: landmarks lie on what they name, hearts are as published, files are as promised."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from running import ROOT

from jaxmark.bounds import check
from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cohort import check_inside, read_cohort
from jaxmark.data.phantoms.cine import short_axis
from jaxmark.data.phantoms.cine.cohort import VIEWS, CinePhantom, make_case
from jaxmark.data.phantoms.cine.heart import at_contraction, draw_heart
from jaxmark.data.phantoms.cine.plane import angles, centroid, draw_plane, rays, smooth_fields
from jaxmark.data.phantoms.grids import centred_grid
from jaxmark.data.pictures import read_picture
from jaxmark.registry import PHANTOMS
from jaxmark.system.errors import InputError

SMALL = CinePhantom(train=2, val=1, test=1, seed=3, frames=2, pixel_mm=(4.0, 5.0), matrix=(48, 80))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    SMALL.write(root, workers=1)
    return root


def people(scanner, count=300):
    return [draw_heart(np.random.default_rng([1, k]), scanner) for k in range(count)]


def healthy(count=600):
    return [heart for heart in people("A", count) if heart.group == "healthy"]


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def pixels_of(case):
    """The landmarks' indices, and the picture as shares of its 99th percentile."""
    ijk = apply_affine(np.linalg.inv(case.ijk_to_lps), case.landmarks_mm)
    picture = case.voxels[:, :, 0].astype(float)
    return ijk[:, :2], picture / np.percentile(picture, 99)


def mean_around(picture, at, radius):
    x, y = np.ogrid[: picture.shape[0], : picture.shape[1]]
    return picture[np.hypot(x - at[0], y - at[1]) <= radius].mean()


# --- the cohort


def test_a_cohort_is_read_with_its_splits_by_person(root):
    cohort = read_cohort(Data(root=str(root), landmarks=SMALL.scheme.landmarks))
    assert {split: len(cases) for split, cases in cohort.splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    person = {s: {c.split("-frame-")[0] for c in cases} for s, cases in cohort.splits.items()}
    assert person["train"] == {"patient-000", "patient-001"}
    assert not (person["train"] & person["val"]) | (person["train"] & person["test"])


def test_files_state_the_pixel_size_and_hold_the_case(root):
    case = make_case(SMALL, 3)
    image = sitk.ReadImage(str(root / "images/patient-001-frame-01.nii.gz"))
    assert image.GetSize()[2] == 1
    assert image.GetSpacing() == pytest.approx(np.diag(case.ijk_to_lps)[:3], abs=1e-5)
    assert image.GetOrigin() == pytest.approx(case.ijk_to_lps[:3, 3], abs=1e-4)
    written = sitk.GetArrayFromImage(image).swapaxes(0, 2)
    np.testing.assert_array_equal(written, case.voxels)
    assert written.dtype == np.int16
    known = json.loads((root / "anatomy/patient-001-frame-01.json").read_text())
    assert known["contraction"] == 1.0
    assert known["heart"]["group"] == case.moment.heart.group


def test_points_are_read_as_pixels_of_their_slices(root):
    data = Data(
        root=str(root),
        landmarks=SMALL.scheme.landmarks,
        unit="px",
        grid="native",
        spacing_mm=(1.0, 1.0, 1.0),
        crop=(48, 48, 1),
    )
    case = read_cohort(data).cases["patient-002-frame-01"]
    made = make_case(SMALL, 5)
    ijk, _ = pixels_of(made)
    np.testing.assert_allclose(case.landmarks_mm[:, :2], ijk, atol=1e-3)
    data.unit = "mm"
    in_mm = read_cohort(data).cases["patient-002-frame-01"].landmarks_mm
    np.testing.assert_allclose(in_mm, made.landmarks_mm)
    picture = read_picture(case.scan, "px")
    np.testing.assert_array_equal(picture.voxels, made.voxels)
    check_inside(case, picture)


def test_what_is_missing_is_made_anew_with_the_same_bytes(root):
    before = digests(root)
    (root / "landmarks/patient-002-frame-00.csv").unlink()
    (root / "splits.json").unlink()
    SMALL.write(root, workers=1)
    assert digests(root) == before


@pytest.mark.slow
def test_processes_write_the_same_bytes(root, tmp_path):
    program = (
        "from pathlib import Path; from jaxmark.data.phantoms import folders\n"
        "from jaxmark.data.phantoms.cine.cohort import CinePhantom\n"
        "if __name__ == '__main__':\n"
        "    folders._VOXELS_WORTH_PROCESSES = 0\n"
        f"    {SMALL!r}.write(Path({str(tmp_path / 'cohort')!r}), 2)\n"
    )
    script = tmp_path / "write.py"
    script.write_text(program)
    subprocess.run([sys.executable, script], check=True, cwd=ROOT, env=None)
    assert digests(tmp_path / "cohort") == digests(root)


def test_it_is_a_phantom_of_stored_configs():
    assert PHANTOMS["CinePhantom"] is CinePhantom


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view": "four chamber"}, "view: 'four chamber' is not one of"),
        ({"scanner": "C"}, "scanner: 'C' is not 'A' or 'B'"),
        ({"frames": 0}, "frames: 0"),
        ({"pixel_mm": (1.8, 1.2)}, "pixel_mm: (1.8, 1.2) is not two positive numbers"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(InputError) as caught:
        check(dataclasses.replace(SMALL, **changes), "config.phantom")
    assert message in str(caught.value)


# --- people


def test_healthy_hearts_are_as_published():
    hearts = healthy()
    diastole = [at_contraction(heart, 0.0) for heart in hearts]
    systole = [at_contraction(heart, 1.0) for heart in hearts]
    assert 45 < np.mean([2 * m.radius for m in diastole]) < 50
    walls = [m.wall for m in diastole]
    assert 6 <= min(walls) < 7 < np.mean(walls) < 9 < max(walls) < 10.01
    assert 12 < np.mean([m.plane for m in systole]) < 16
    assert 29 < np.mean([m.annulus for m in diastole]) < 35
    assert 2 < np.mean([s.annulus - d.annulus for s, d in zip(systole, diastole, strict=True)]) < 4
    assert 30 < np.mean([m.rv for m in diastole]) < 36
    thicker = [s.wall / d.wall for s, d in zip(systole, diastole, strict=True)]
    assert 1.3 < np.mean(thicker) < 1.8


def test_muscle_keeps_its_volume():
    heart = people("B")[0]
    moments = [at_contraction(heart, c) for c in (0.0, 0.5, 1.0)]
    volumes = [((m.radius + m.wall) ** 2 - m.radius**2) * m.length for m in moments]
    assert volumes == pytest.approx([volumes[0]] * 3)


def test_the_second_hospital_has_other_people():
    a, b = people("A"), people("B")
    assert np.mean([h.group == "healthy" for h in a]) > 0.5
    assert np.mean([h.group == "healthy" for h in b]) < 0.3
    ill = {g: [h for h in b if h.group == g] for g in ("hypertrophic", "dilated", "RV")}
    assert np.mean([h.wall for h in ill["hypertrophic"]]) > 11
    assert np.mean([h.lv_diameter for h in ill["dilated"]]) > 58
    assert np.mean([h.rv for h in ill["RV"]]) > 42


# --- shapes


def test_a_centroid_is_the_mean_of_the_area():
    radii = 20 + 4 * np.cos(angles()) + 3 * np.sin(3 * angles())
    x, y = np.mgrid[-30:30:0.1, -30:30:0.1]
    index = np.rint(np.arctan2(y, x) / (2 * np.pi) * len(radii)).astype(int) % len(radii)
    inside = np.hypot(x, y) < radii[index]
    np.testing.assert_allclose(centroid(radii), [x[inside].mean(), y[inside].mean()], atol=0.01)


def test_landmarks_follow_the_warp():
    """A ring drawn through the warp lies where the warped points are."""
    rng = np.random.default_rng(5)
    plane = draw_plane(rng, centred_grid((200, 220, 1), (1.5, 1.5, 8), np.zeros(3)), np.ones(2), 30)
    at = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = plane.to_picture(30 * np.stack([np.cos(at), np.sin(at)], axis=1))
    distance = rays(plane).inside(np.full(len(angles()), 30.0))
    ijk = (points - plane.grid.ijk_to_lps[:2, 3]) / 1.5
    x, y = np.rint(ijk).astype(int).T
    assert np.abs(distance[x, y]).max() < 0.75 * 1.5
    assert np.abs(np.hypot(*(points - 1).T) - 30).max() > 0.5  # it does bend


def test_random_fields_have_the_moments_they_promise():
    grid = centred_grid((200, 256, 1), (1.5, 1.5, 8.0), np.zeros(3))
    fields = [smooth_fields(np.random.default_rng(k), grid, (3.5, 12.0)) for k in range(12)]
    np.testing.assert_allclose(np.std(fields, axis=(0, 2, 3)), 1, atol=0.05)
    lag = np.mean([np.mean(f[:, :-4] * f[:, 4:], axis=(1, 2)) for f in fields], axis=0)
    # A Gaussian's correlation at a lag: exp(-lag^2 / 4 sigma^2).
    np.testing.assert_allclose(lag, np.exp(-((6 / np.array([3.5, 12.0])) ** 2) / 4), atol=0.06)


def test_insertion_points_are_where_the_rv_meets_the_epicardium():
    for number in range(20):
        rng = np.random.default_rng(number)
        moment = at_contraction(draw_heart(rng, "B"), 0.5)
        ring = short_axis.draw_ring(rng, moment, 0.3)
        anterior, inferior, _ = ring.points
        for point, beyond in ((anterior, 1), (inferior, -1)):
            angle = np.arctan2(point[1], point[0])
            radii = {
                step: [
                    np.interp(angle + beyond * step, angles(), table, period=2 * np.pi)
                    for table in (ring.outer, ring.free)
                ]
                for step in (-0.05, 0.0, 0.05)
            }
            assert np.hypot(*point) == pytest.approx(radii[0.0][0])
            assert radii[-0.05][1] > radii[-0.05][0]  # the RV is on one side
            assert radii[0.05][1] < radii[0.05][0]  # and not on the other
        # Seen from the LV the anterior one is clockwise from the RV, for y points down.
        assert anterior[0] * inferior[1] - anterior[1] * inferior[0] < 0


# --- pictures


@pytest.mark.parametrize("scanner", ["A", "B"])
@pytest.mark.parametrize("view", sorted(VIEWS))
def test_landmarks_lie_in_the_picture_at_every_moment(view, scanner):
    phantom = CinePhantom(view=view, scanner=scanner, frames=2)
    for number in range(6):
        case = make_case(phantom, number)
        ijk, _ = pixels_of(case)
        assert case.landmarks_mm.shape == (len(VIEWS[view].landmarks), 3)
        assert (ijk > 15).all() and (ijk < np.array(case.voxels.shape[:2]) - 15).all()
        assert 160 <= max(case.voxels.shape) <= 256
        assert 1.2 <= case.ijk_to_lps[0, 0] <= 1.8


def test_the_cavity_is_bright_and_the_wall_dark():
    phantom = CinePhantom(view="short axis", frames=1)
    for number in range(8):
        case = make_case(phantom, number)
        (anterior, inferior, centre), picture = pixels_of(case)
        pixel = case.ijk_to_lps[0, 0]
        away = centre - (anterior + inferior) / 2
        away /= np.linalg.norm(away)
        middle = case.moment.inner_radius(case.level) + case.moment.wall / 2
        wall = mean_around(picture, centre + away * middle / pixel, 1.5)
        blood = mean_around(picture, centre, 5)
        assert wall < 0.6 * blood


def test_the_mitral_plane_moves_to_the_apex_and_the_cavity_shrinks():
    long, short = (CinePhantom(view=v, frames=2) for v in ("long axis", "short axis"))
    for person in range(5):
        begin, end = (make_case(long, 2 * person + k) for k in (0, 1))
        moved = np.linalg.norm(end.landmarks_mm[3] - begin.landmarks_mm[3])
        assert moved == pytest.approx(begin.moment.heart.mapse, rel=0.1)
        still = np.linalg.norm(end.landmarks_mm[2] - begin.landmarks_mm[2])
        assert still < 0.1
        apart = [np.linalg.norm(c.landmarks_mm[3] - c.landmarks_mm[2]) for c in (begin, end)]
        assert apart[1] < apart[0] - 2
        begin, end = (make_case(short, 2 * person + k) for k in (0, 1))
        assert end.moment.radius < begin.moment.radius
        # One person: the body is where it was.
        np.testing.assert_array_equal(begin.ijk_to_lps, end.ijk_to_lps)
        assert np.corrcoef(begin.voxels.ravel(), end.voxels.ravel())[0, 1] > 0.7


def test_the_scanners_differ_in_contrast_noise_and_shading():
    def measured(scanner):
        ratios, noise = [], []
        for number in range(10):
            case = make_case(CinePhantom(view="short axis", scanner=scanner, frames=1), number)
            ijk, picture = pixels_of(case)
            blood = mean_around(picture, ijk[2], 5)
            corner = picture[:12, :12]
            noise.append(corner.std() / blood)
            ratios.append(np.percentile(picture, 99.9) / blood)
        return np.median(ratios), np.median(noise)

    (bright_a, noise_a), (bright_b, noise_b) = measured("A"), measured("B")
    assert noise_b > 1.4 * noise_a
    # Fat beside the coils outshines blood.
    assert bright_b > 1.3 * bright_a


def test_a_case_is_a_function_of_settings_and_number():
    again = make_case(SMALL, 5)
    np.testing.assert_array_equal(again.voxels, make_case(SMALL, 5).voxels)
    other = make_case(dataclasses.replace(SMALL, seed=4), 5)
    assert not np.array_equal(other.landmarks_mm, again.landmarks_mm)
    blind = make_case(dataclasses.replace(SMALL, scanner="B"), 5)
    assert not np.array_equal(blind.landmarks_mm, again.landmarks_mm)
