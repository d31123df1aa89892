"""Label maps and attributes of scans: the right voxels, the right names, and nothing without."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
from blocks import (
    BLOCKS,
    FORK,
    PRESENT,
    SCHEME,
    SPACING,
    Thresholds,
    blocks,
    model,
    scan_on,
    stored,
)
from conftest import random_rotation, refused

from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.core.grids import Grid
from jaxmark.data.cases import Volume
from jaxmark.data.scans import to_image, write_scan
from jaxmark.inference.predictor import Found
from jaxmark.inference.segments import ScanSegments
from jaxmark.methods.method import FORKS, SEGMENTATION, SEGMENTS_PRESENT, TOLD, Prediction
from jaxmark.results.batch import predict_scans, scans_at
from jaxmark.results.predictions import attributes_file, read_predicted_attributes, segment_files


def names_of(image):
    count = sum(key.endswith("_Name") for key in image.GetMetaDataKeys())
    return [image.GetMetaData(f"Segment{index}_Name") for index in range(count)]


def test_label_maps_lie_where_the_scan_has_its_blocks_however_it_is_stored(tmp_path):
    rng = np.random.default_rng(0)
    grids = list(stored(rng))
    for name, shape, place in grids:
        scan = scan_on(shape, place)
        write_scan(tmp_path / "in" / f"{name}.nrrd", scan.voxels, place)
    out = tmp_path / "out"
    outcome = predict_scans(model(tmp_path / "model"), scans_at(tmp_path / "in"), out)
    assert outcome.written == len(grids) and not outcome.failures
    for name, shape, place in grids:
        scan = sitk.ReadImage(str(tmp_path / "in" / f"{name}.nrrd"))
        slicer, plain, _ = segment_files(out, name, TOLD)
        images = [sitk.ReadImage(str(path)) for path in (slicer, plain)]
        for image in images:
            # On the scan's own grid, to what NIfTI's float32 keeps.
            assert image.GetSize() == scan.GetSize() == tuple(shape)
            assert image.GetPixelID() == sitk.sitkUInt8
            for part in ("Spacing", "Direction", "Origin"):
                ours, theirs = (getattr(i, f"Get{part}")() for i in (image, scan))
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
        labels = sitk.GetArrayFromImage(images[0]).transpose(2, 1, 0)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(images[1]).transpose(2, 1, 0), labels)
        # Every voxel that is farther from all walls than a voxel of the prepared grid is right.
        points = apply_affine(place, np.stack(np.indices(shape), -1).astype(float))
        wall = np.full(shape, np.inf)
        for middle, half in BLOCKS:
            away = np.abs(points - np.array(middle)) - half
            outside = np.linalg.norm(np.maximum(away, 0), axis=-1)
            wall = np.minimum(wall, np.where(outside > 0, outside, -away.max(-1)))
        sure = wall > np.linalg.norm(SPACING)
        truth = blocks(points)
        np.testing.assert_array_equal(labels[sure], truth[sure])
        assert all((sure & (truth == label)).sum() > 2 for label in (1, 2)), name


def test_a_known_map_moves_voxel_by_voxel_as_itk_moves_it():
    rng = np.random.default_rng(3)
    scheme = dataclasses.replace(SCHEME)
    for number in range(6):
        shape = tuple(rng.integers(8, 16, 3).tolist())
        labels = rng.integers(0, 4, shape).astype(np.uint8)
        place = compose_affine(random_rotation(rng) * rng.uniform(0.5, 2, 3), rng.normal(0, 9, 3))
        size = tuple(rng.integers(8, 24, 3).tolist())
        axes = random_rotation(rng) * rng.uniform(0.4, 2, 3)
        if number % 2:
            axes[:, 0] *= -1  # left-handed, as flipped scans are
        # Its middle lies in the prepared volume, some of it outside.
        middle = apply_affine(place, (np.array(shape) - 1) / 2)
        grid = Grid(size, compose_affine(axes, middle - axes @ (np.array(size) / 2)))
        found = Found(
            Volume("one", lambda: None, place),
            Prediction(
                {},
                score=np.zeros(2),
                evidence=np.zeros(2),
                maps={SEGMENTATION: labels},
                probabilities={SEGMENTS_PRESENT: np.ones(3), FORKS: np.ones(2)},
            ),
        )
        segments = ScanSegments.of(found, scheme, grid)
        reference = to_image(np.zeros(size, np.uint8), grid.ijk_to_lps)
        moved = sitk.Resample(
            to_image(labels, place), reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0
        )
        expected = sitk.GetArrayFromImage(moved).transpose(2, 1, 0)
        assert 0.05 < (expected > 0).mean() < 0.7
        np.testing.assert_array_equal(segments.labels, expected)
        voxel = np.abs(np.linalg.det(axes))
        count = [(expected == label).sum() for label in (1, 2, 3)]
        np.testing.assert_allclose(segments.sizes.volume_mm3, np.array(count) * voxel)


def test_a_segmentation_has_names_and_colours_as_3d_slicer_reads_them(tmp_path):
    (name, shape, place), *_ = stored(np.random.default_rng(0))
    write_scan(tmp_path / "in" / "one.nii.gz", scan_on(shape, place).voxels, place)
    out = tmp_path / "out"
    predict_scans(model(tmp_path / "model"), scans_at(tmp_path / "in"), out)
    image = sitk.ReadImage(str(out / "one.seg.nrrd"))
    assert names_of(image) == ["dim", "bright", "never"]
    assert image.GetMetaData("Segmentation_MasterRepresentation") == "Binary labelmap"
    colors = set()
    for index in range(3):
        about = {
            key: image.GetMetaData(f"Segment{index}_{key}")
            for key in ("ID", "LabelValue", "Color", "Layer", "Extent")
        }
        assert (about["LabelValue"], about["Layer"]) == (str(index + 1), "0")
        assert about["Extent"] == "0 39 0 36 0 33"
        rgb = [float(share) for share in about["Color"].split()]
        assert len(rgb) == 3 and all(0 <= share <= 1 for share in rgb)
        colors.add(about["Color"])
    assert len(colors) == 3
    # Custom fields of a NRRD header are `key:=value`.
    header = (out / "one.seg.nrrd").read_bytes().partition(b"\n\n")[0].decode()
    assert header.startswith("NRRD000") and "Segment1_Name:=bright" in header
    dataset = json.loads((out / "segmentations" / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "dim": 1, "bright": 2, "never": 3}
    assert (dataset["numTraining"], dataset["file_ending"]) == (1, ".nii.gz")


def test_attributes_say_what_the_person_has(tmp_path):
    (_, shape, place), *_ = stored(np.random.default_rng(0))
    write_scan(tmp_path / "in" / "one.nii.gz", scan_on(shape, place).voxels, place)
    out = tmp_path / "out"
    predict_scans(model(tmp_path / "model"), scans_at(tmp_path / "in"), out)
    tree = json.loads((out / "one.attributes.json").read_text())
    assert (tree["schema_version"], tree["case"], tree["doubts"]) == (1, "one", [])
    assert tree["variant"] == "never missing"
    assert list(tree["segments"]) == ["dim", "bright", "never"]
    rows = list(tree["segments"].values())
    assert [row["present"] for row in rows] == list(PRESENT)
    assert [row["label"] for row in rows] == [1, 2, 3]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "segmentations" / "one.nii.gz")))
    for row, (_, half) in zip(rows, BLOCKS, strict=False):
        assert row["volume_mm3"] == pytest.approx((labels == row["label"]).sum() * 1.5**3)
        assert 0 < row["mean_radius_mm"] < max(half)
    assert (rows[2]["volume_mm3"], rows[2]["mean_radius_mm"]) == (0, None)
    np.testing.assert_allclose([row["fork"] for row in tree["landmarks"].values()], FORK)
    stated = read_predicted_attributes(attributes_file(out, "one"), SCHEME)
    np.testing.assert_allclose(stated.present, PRESENT)
    np.testing.assert_allclose(stated.forks, FORK)
    assert (stated.variant, stated.doubts) == ("never missing", ())
    (row,) = csv.DictReader((out / "batch" / "attributes.csv").open(newline=""))
    assert (row["case"], row["variant"], row["doubts"]) == ("one", "never missing", "")
    assert float(row["bright"]) == pytest.approx(0.9)
    # The same from Python.
    predicted = model(tmp_path / "again").predict(tmp_path / "in" / "one.nii.gz").segments
    assert predicted.variant == "never missing"
    assert (predicted.labels > 0).sum() > 0 and predicted.labels.shape == shape


@pytest.mark.parametrize(
    "tells", [(SEGMENTATION,), (SEGMENTATION, FORKS), (SEGMENTS_PRESENT, FORKS)]
)
def test_what_a_method_does_not_tell_is_not_written(tmp_path, tells):
    (_, shape, place), *_ = stored(np.random.default_rng(0))
    write_scan(tmp_path / "in" / "one.nii.gz", scan_on(shape, place).voxels, place)
    here, out = model(tmp_path / "model", Thresholds(*tells)), tmp_path / "out"
    for written in (1, 0):
        outcome = predict_scans(here, scans_at(tmp_path / "in"), out)
        assert (outcome.written, outcome.failures) == (written, {})
    maps = SEGMENTATION in tells
    assert (out / "one.seg.nrrd").exists() == (out / "segmentations").exists() == maps
    assert all(path.exists() for path in segment_files(out, "one", tells))
    tree = json.loads((out / "one.attributes.json").read_text())
    dim, at_b = tree["segments"]["dim"], tree["landmarks"]["b"]
    assert dim["present"] == (PRESENT[0] if SEGMENTS_PRESENT in tells else None)
    assert (dim["volume_mm3"] or 0) > 0 if maps else dim["volume_mm3"] is None
    assert (dim["mean_radius_mm"] or 0) > 0 if maps else dim["mean_radius_mm"] is None
    assert at_b == {"fork": FORK[1] if FORKS in tells else None}
    assert tree["variant"] == ("never missing" if SEGMENTS_PRESENT in tells else "")
    (row,) = csv.DictReader((out / "batch" / "attributes.csv").open(newline=""))
    assert row["dim"] == ("0.8" if SEGMENTS_PRESENT in tells else "")
    assert (out / "one.png").exists()


def test_what_another_model_told_does_not_stay(tmp_path):
    (_, shape, place), *_ = stored(np.random.default_rng(0))
    write_scan(tmp_path / "in" / "one.nii.gz", scan_on(shape, place).voxels, place)
    out = tmp_path / "out"
    predict_scans(model(tmp_path / "model"), scans_at(tmp_path / "in"), out)
    other = model(tmp_path / "model", Thresholds(FORKS))
    other.variables.params["weight"] = np.ones(1)
    assert predict_scans(other, scans_at(tmp_path / "in"), out).written == 1
    told = [path.name for path in segment_files(out, "one", TOLD) if path.exists()]
    assert told == ["one.attributes.json"]


def test_a_doubtful_scan_has_doubtful_attributes(tmp_path):
    (_, shape, place), *_ = stored(np.random.default_rng(0))
    scan = scan_on(shape, place).voxels[24:]
    write_scan(tmp_path / "in" / "half.nii.gz", scan, place)
    out = tmp_path / "out"
    predict_scans(model(tmp_path / "model"), scans_at(tmp_path / "in"), out)
    doubts = json.loads((out / "half.attributes.json").read_text())["doubts"]
    assert (
        doubts
        and doubts == json.loads((out / "batch" / "cases" / "half.json").read_text())["doubts"]
    )


def test_a_second_start_makes_what_is_missing_and_nothing_else(tmp_path):
    for name, shape, place in list(stored(np.random.default_rng(0)))[:2]:
        write_scan(tmp_path / "in" / f"{name}.nrrd", scan_on(shape, place).voxels, place)
    # Output among the input: what was written is no scan.
    out = tmp_path / "in"
    here = model(tmp_path / "model")
    assert sorted(scans_at(out)) == ["flipped", "plain"]
    assert predict_scans(here, scans_at(out), out).written == 2
    assert sorted(scans_at(out)) == ["flipped", "plain"]
    assert predict_scans(here, scans_at(out), out).written == 0
    before = {path: path.read_bytes() for path in segment_files(out, "plain", TOLD)}
    for path in before:
        path.unlink()
        again = predict_scans(here, scans_at(out), out)
        assert (again.written, again.skipped) == (1, 1)
        assert {p: p.read_bytes() for p in before} == before
    # What is damaged, too.
    attributes_file(out, "plain").write_text("{}")
    assert predict_scans(here, scans_at(out), out).written == 1
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("damage", ["gone", "text", "other scheme", "no probability", "no words"])
def test_damaged_attributes_are_refused(tmp_path, damage):
    (_, shape, place), *_ = stored(np.random.default_rng(0))
    write_scan(tmp_path / "in" / "one.nii.gz", scan_on(shape, place).voxels, place)
    predict_scans(model(tmp_path / "model"), scans_at(tmp_path / "in"), tmp_path)
    path = attributes_file(tmp_path, "one")
    tree = json.loads(path.read_text())
    if damage == "gone":
        path.unlink()
    elif damage == "text":
        path.write_text("[")
    elif damage == "no words":
        path.write_text(json.dumps({**tree, "doubts": [1]}))
    elif damage == "no probability":
        tree["segments"]["dim"]["present"] = 1.5
        path.write_text(json.dumps(tree))
    scheme = COW19 if damage == "other scheme" else SCHEME
    refused(lambda: read_predicted_attributes(path, scheme), "one.attributes.json")
