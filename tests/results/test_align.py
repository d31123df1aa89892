"""Two scans brought together by landmarks: files, weights, what is left out, and mistakes."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import random_rotation, refused
from PIL import Image

from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.landmarks import write_mrk_json, write_table
from jaxmark.data.resampling import resample
from jaxmark.data.scans import Scan, read_scan, write_scan
from jaxmark.data.transforms import read_transform
from jaxmark.inference.model import ScanLandmarks
from jaxmark.results.align import Side, align_sides, write_alignment
from jaxmark.system.errors import InputError
from jaxmark.workflow import align

NAMES = tuple(f"point {letter}" for letter in "abcdefghij")
SHAPE, SPACING_MM = (40, 36, 30), 2.0


def blobs(points_mm, centres_mm):
    """A sum of spots, at LPS mm (..., 3)."""
    values = np.zeros(points_mm.shape[:-1])
    for number, centre in enumerate(centres_mm):
        width = 3 + number % 3
        values += (1 + number / 10) * np.exp(-((points_mm - centre) ** 2).sum(-1) / (2 * width**2))
    return (1000 * values).astype(np.float32)


def scan_of(points_mm, world_to_points, ijk_to_lps, shape=SHAPE):
    """The spots, as the map from the scan's world to theirs puts them."""
    grid = np.stack(np.indices(shape), -1).astype(float)
    return Scan(blobs(apply_affine(world_to_points @ ijk_to_lps, grid), points_mm), ijk_to_lps)


@pytest.fixture
def pair(tmp_path):
    """Fixed and moving scan with landmark files; the moving one is turned, on an oblique grid."""
    rng = np.random.default_rng(0)
    fixed_grid = compose_affine(
        np.diag([-SPACING_MM, SPACING_MM, SPACING_MM]), np.array([39.0, -35, -29])
    )
    points = rng.uniform(-24, 24, (len(NAMES), 3))
    turn = compose_affine(random_rotation(rng), np.array([30.0, -20, 15]))
    axes = random_rotation(rng) @ np.diag([1.5, 1.5, -1.8])
    size = (64, 60, 56)
    moving_grid = compose_affine(axes, turn[:3, 3] - axes @ ((np.array(size) - 1) / 2))
    scans = {
        "fixed": scan_of(points, np.eye(4), fixed_grid),
        "moving": scan_of(points, np.linalg.inv(turn), moving_grid, size),
    }
    places = {"fixed": points, "moving": apply_affine(turn, points)}
    for name, scan in scans.items():
        write_scan(tmp_path / f"{name}.nii.gz", scan.voxels, scan.ijk_to_lps)
        named = dict(zip(NAMES, places[name], strict=True))
        write_mrk_json(tmp_path / f"{name}.mrk.json", named)
    return tmp_path, turn, places


def run(folder, **options):
    """By landmark files, into `folder/out`."""
    return align(
        folder / "fixed.nii.gz",
        folder / "moving.nii.gz",
        folder / "out",
        fixed_landmarks=folder / "fixed.mrk.json",
        moving_landmarks=folder / "moving.mrk.json",
        **options,
    )


def rows(folder):
    return list(csv.DictReader((folder / "out" / "residuals.csv").read_text().splitlines()))


def changed(folder, name, **points):
    """Write the landmark file again with other positions (underscores are blanks)."""
    file = folder / f"{name}.mrk.json"
    tree = json.loads(file.read_text())
    for point in tree["markups"][0]["controlPoints"]:
        if (key := point["label"].replace(" ", "_")) in points:
            point["position"] = [float(v) for v in points[key]]
    file.write_text(json.dumps(tree))


def test_a_scan_aligned_with_itself_is_named(pair, capsys):
    folder, _, _ = pair
    scan, file = folder / "fixed.nii.gz", folder / "fixed.mrk.json"
    (folder / "elsewhere").mkdir()
    again = folder / "elsewhere" / ".." / "fixed.nii.gz"
    result = align(scan, again, folder / "out", fixed_landmarks=file, moving_landmarks=file)
    assert result.doubts == (f"{scan}: is both the fixed and the moving scan",)
    assert f"warning: {result.doubts[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine", "thin_plate"])
def test_the_moving_scan_lies_on_the_fixed_one(kind, pair, capsys):
    folder, turn, places = pair
    result = run(folder, transform=kind)
    out = folder / "out"
    fixed, moved = read_scan(folder / "fixed.nii.gz"), read_scan(out / "moving_on_fixed.nii.gz")
    np.testing.assert_allclose(moved.ijk_to_lps, fixed.ijk_to_lps, atol=1e-4)
    assert moved.voxels.shape == fixed.voxels.shape
    # All of the fixed scan's middle lies in the moving one; it is blurred by its voxels.
    middle = (slice(8, -8),) * 3
    apart = np.abs(moved.voxels - fixed.voxels)[middle]
    assert apart.mean() < 10 < fixed.voxels[middle].std()
    before = resample(read_scan(folder / "moving.nii.gz"), SHAPE, fixed.ijk_to_lps)
    assert np.abs(before - fixed.voxels)[middle].mean() > 10 * apart.mean()
    # 3D Slicer's file, by ITK: from fixed landmarks to moving ones.
    if kind == "thin_plate":
        field = sitk.ReadImage(str(out / "displacement.mha"), sitk.sitkVectorFloat64)
        transform = sitk.DisplacementFieldTransform(field)
    else:
        transform = sitk.ReadTransform(str(out / "transform.tfm"))
        np.testing.assert_allclose(read_transform(out / "transform.tfm"), turn, atol=1e-4)
    for a, b in zip(places["fixed"].tolist(), places["moving"], strict=True):
        np.testing.assert_allclose(transform.TransformPoint(a), b, atol=1e-3)
    tree = json.loads((out / "alignment.json").read_text())
    assert (tree["schema_version"], tree["kind"]) == (1, kind)
    np.testing.assert_allclose(tree["matrix"], turn, atol=1e-3)
    assert (tree["spline"] is None) == (kind != "thin_plate")
    assert tree["weighted_rms_mm"]["after"] < 1e-3 < 10 < tree["weighted_rms_mm"]["before"]
    assert tree["doubts"] == list(result.doubts) == []
    assert Image.open(out / "checkerboard.png").size[0] == 1400
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"{kind} map by 10 landmarks: RMS residual " in line and "0.00 mm after" in line


def test_the_table_has_the_pairs_and_what_is_left_of_their_distances(pair):
    folder, _, places = pair
    changed(folder, "moving", point_c=places["moving"][2] + [1, 0, 0])
    result = run(folder, transform="affine")
    table = rows(folder)
    assert [row["landmark"] for row in table] == list(NAMES)
    for scan in ("fixed", "moving"):
        found = [[float(row[f"{scan}_{axis}_lps_mm"]) for axis in "xyz"] for row in table]
        expected = places[scan] + ([0, 0, 0] if scan == "fixed" else np.eye(10)[:, 2:3] * [1, 0, 0])
        np.testing.assert_allclose(found, expected, atol=1e-6)
    columns = {
        name: np.array([float(row[name]) for row in table])
        for name in ("weight", "residual_before_mm", "residual_after_mm", "leave_one_out_mm")
    }
    assert np.isclose(columns["weight"].sum(), 1)
    np.testing.assert_allclose(columns["residual_before_mm"], result.before_mm)
    assert columns["residual_after_mm"].argmax() == 2
    assert columns["leave_one_out_mm"][2] > columns["residual_after_mm"][2]
    tree = json.loads((folder / "out" / "alignment.json").read_text())
    rms = np.sqrt((columns["weight"] * columns["residual_after_mm"] ** 2).sum())
    assert np.isclose(tree["weighted_rms_mm"]["after"], rms)


@pytest.mark.parametrize("kind", ["rigid", "thin_plate"])
def test_a_landmark_far_off_is_named(kind, pair, capsys):
    folder, _, places = pair
    changed(folder, "moving", point_d=places["moving"][3] + [30, 0, 0])
    result = run(folder, transform=kind)
    (doubt,) = [line for line in result.doubts if line.startswith("landmark ")]
    assert doubt.startswith("landmark 'point d' is ") and "where the others place it" in doubt
    assert ("% of its weight count" in doubt) == (kind == "rigid")
    assert f"warning: {doubt}" in capsys.readouterr().err
    others = np.delete(np.arange(10), 3)
    if kind == "rigid":
        assert result.after_mm[others].max() < 0.5 and result.after_mm[3] > 29
    else:
        # Without radii a spline follows every landmark.
        assert result.after_mm.max() < 1e-4


def test_a_second_map_of_another_sort_takes_the_place_of_the_first(pair):
    folder, _, _ = pair
    run(folder, transform="thin_plate")
    run(folder, transform="rigid")
    names = {path.name for path in (folder / "out").iterdir()}
    assert "transform.tfm" in names and "displacement.mha" not in names
    run(folder, transform="thin_plate")
    names = {path.name for path in (folder / "out").iterdir()}
    assert "transform.tfm" not in names and "displacement.mha" in names
    assert not [name for name in names if name.startswith(".") and name != ".lock"]


def test_exchanged_sides_and_landmarks_outside_are_said(pair):
    folder, _, places = pair
    mirrored = places["fixed"] * [-1, 1, 1]
    changed(
        folder, "moving", **{n.replace(" ", "_"): p for n, p in zip(NAMES, mirrored, strict=True)}
    )
    doubts = run(folder, transform="affine").doubts
    assert any("the map mirrors: right and left are exchanged" in line for line in doubts)
    far = places["fixed"] + [500, 0, 0]
    changed(folder, "moving", **{n.replace(" ", "_"): p for n, p in zip(NAMES, far, strict=True)})
    doubts = run(folder, transform="rigid").doubts
    expected = f"{folder / 'moving.nii.gz'}: 10 of 10 landmarks lie outside of the scan"
    assert expected in doubts


def test_a_map_that_flattens_is_said_and_drawn(pair):
    folder, _, places = pair
    flat = {n.replace(" ", "_"): [*p[:2], 0.0] for n, p in zip(NAMES, places["fixed"], strict=True)}
    changed(folder, "moving", **flat)
    doubts = run(folder, transform="affine").doubts
    assert any(line.startswith("the map stretches lengths by 0.00 to ") for line in doubts)
    assert (folder / "out" / "checkerboard.png").exists()


def test_landmarks_in_common_are_used_and_the_others_named(pair, capsys):
    folder, _, places = pair
    fixed = dict(zip(NAMES, places["fixed"], strict=True))
    moving = dict(zip(NAMES, places["moving"], strict=True))
    fixed["point a"] = None
    del moving["point b"]
    moving["extra"] = np.zeros(3)
    write_mrk_json(folder / "fixed.mrk.json", fixed)
    write_mrk_json(folder / "moving.mrk.json", moving)
    result = run(folder)
    assert result.landmarks == NAMES[2:] and result.kind == "similarity"
    assert "similarity map by 8 landmarks (3 not used): " in capsys.readouterr().out
    file = {name: folder / f"{name}.mrk.json" for name in ("fixed", "moving")}
    assert result.left_out == {
        "point a": "fixed: absent",
        "point b": f"moving: not in {file['moving']}",
        "extra": f"fixed: not in {file['fixed']}",
    }
    tree = json.loads((folder / "out" / "alignment.json").read_text())
    assert tree["left_out"] == result.left_out


def found_in(places_mm, radius_mm, presence=None, untrained=(), doubts=()):
    return ScanLandmarks(
        name="scan",
        landmarks=NAMES,
        positions_mm=places_mm,
        score=np.ones(len(NAMES)),
        presence=presence,
        radius_mm=radius_mm,
        coverage=0.9,
        doubts=doubts,
        untrained=untrained,
    )


def test_what_a_model_states_decides_weights_and_what_is_left_out(pair):
    folder, _, places = pair
    radius = np.linspace(1, 4, 10)
    radius[5] = np.inf
    presence = np.ones(10)
    presence[0] = 0.2
    sides = []
    for name in ("fixed", "moving"):
        path = folder / f"{name}.nii.gz"
        found = found_in(places[name], radius, presence, untrained=("point j",), doubts=("odd",))
        sides.append(Side(path, read_scan(path)).with_prediction(found, "runs/mine"))
    result = align_sides(*sides, "rigid")
    assert result.landmarks == NAMES[1:9]
    assert result.left_out == {
        "point a": "fixed: probably absent; moving: probably absent",
        "point j": "fixed: no training case has it; moving: no training case has it",
    }
    # An unknown radius counts as the largest of those that are used.
    squared = np.where(np.isfinite(radius), radius, radius[8])[1:9] ** 2
    np.testing.assert_allclose(result.fit.weights, 1 / squared / (1 / squared).sum(), rtol=1e-6)
    assert [line.rpartition(": ")[2] for line in result.doubts] == ["odd", "odd"]

    # An annotated scan and a predicted one: the prediction's radii alone weigh.
    annotated = Side(sides[0].path, sides[0].scan, dict(zip(NAMES, places["fixed"], strict=True)))
    mixed = align_sides(annotated, sides[1], "rigid")
    np.testing.assert_allclose(mixed.fit.weights, result.fit.weights, rtol=1e-6)

    # Where no radius is known, all weigh the same.
    unknown = [
        side.with_prediction(found_in(places[name], np.full(10, np.inf)), "runs/mine")
        for name, side in zip(("fixed", "moving"), sides, strict=True)
    ]
    equal = align_sides(*unknown, "affine")
    np.testing.assert_allclose(equal.fit.weights, 0.1)


def test_too_few_landmarks_are_refused_with_reasons(pair):
    folder, _, places = pair
    presence = np.where(np.arange(10) < 3, 1.0, 0.1)
    sides = []
    for name in ("fixed", "moving"):
        path = folder / f"{name}.nii.gz"
        found = found_in(places[name], np.ones(10), presence)
        sides.append(Side(path, read_scan(path)).with_prediction(found, "runs/mine"))
    assert len(align_sides(*sides, "rigid").landmarks) == 3
    refused(
        lambda: align_sides(*sides, "affine"),
        sides[1].path,
        f"has 3 usable landmarks in common with {sides[0].path}, and a map that is affine needs 4",
        "'point d': fixed: probably absent",
        "and 2 more",
    )


def test_flat_landmarks_are_refused(pair):
    folder, _, places = pair
    flat = {n: [*p[:2], 0.0] for n, p in zip(NAMES, places["fixed"], strict=True)}
    for scan in ("fixed", "moving"):
        changed(folder, scan, **{n.replace(" ", "_"): p for n, p in flat.items()})
    refused(lambda: run(folder, transform="affine"), "moving.nii.gz", "do not lie in one plane")
    assert not (folder / "out").exists()


def test_all_that_cannot_be_read_is_said_together(pair):
    folder, _, _ = pair
    (folder / "fixed.nii.gz").write_bytes(b"no scan")
    (folder / "moving.mrk.json").write_text("{}")
    with pytest.raises(ExceptionGroup) as caught:
        run(folder)
    lines = [str(error) for error in caught.value.exceptions]
    assert len(lines) == 2
    assert lines[0].startswith(f"{folder / 'fixed.nii.gz'}: ")
    assert lines[1].startswith(f"{folder / 'moving.mrk.json'}: ")
    assert all(isinstance(error, InputError) for error in caught.value.exceptions)


def test_a_table_without_a_frame_is_refused_and_one_with_it_is_read(pair):
    folder, _, places = pair
    table = "landmark,x,y,z\n" + "".join(
        f"{name},{x},{y},{z}\n" for name, (x, y, z) in zip(NAMES, places["moving"], strict=True)
    )
    (folder / "moving.csv").write_text(table)

    def with_table():
        return align(
            folder / "fixed.nii.gz",
            folder / "moving.nii.gz",
            folder / "out",
            fixed_landmarks=folder / "fixed.mrk.json",
            moving_landmarks=folder / "moving.csv",
        )

    refused(with_table, folder / "moving.csv", "states no coordinate frame", "# frame: LPS")
    write_table(folder / "moving.csv", {"moving": dict(zip(NAMES, places["moving"], strict=True))})
    assert with_table().after_mm.max() < 1e-3


def test_a_scan_without_landmarks_and_model_is_refused(pair):
    folder, _, _ = pair
    scans = (folder / "fixed.nii.gz", folder / "moving.nii.gz", folder / "out")
    refused(lambda: align(*scans), scans[0], "has no landmark file, and no trained model is named")
    refused(lambda: align(*scans, transform="warp"), "transform: 'warp' is not one of rigid, sim")
    refused(lambda: align(*scans, workdir=folder), folder, "holds no trained model")
    assert not (folder / "out").exists()


def test_files_are_whole_or_not_there(pair):
    folder, _, _ = pair
    result = run(folder)
    blocked = folder / "file"
    blocked.write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_alignment(result, blocked)
