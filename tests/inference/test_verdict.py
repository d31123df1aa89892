"""Scans that a model has no business with are refused by name; good ones hardly ever."""

import csv
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Augment, Data, Experiment, Predict
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.cases import PreparedCase, load_case, save_case
from jaxmark.data.frame import Frame, save_frame
from jaxmark.data.landmarks import read_landmarks
from jaxmark.data.scans import Scan, write_scan
from jaxmark.inference import calibration, shapes
from jaxmark.inference.model import REFUSED, TrainedModel
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import Method, Prediction, Task, Variables, whole_volume_stage
from jaxmark.results.batch import predict_scans, scans_at
from jaxmark.system.devices import data_mesh

NAMES = ("top R", "top L", "side R", "side L", "base R", "base L", "front", "back")
SHAPE, SPACING = (34, 30, 26), (2.0, 2.0, 2.0)
MIDDLE = compose_affine(np.eye(3) * 2.0, -(np.array(SHAPE) - 1.0))
# LPS mm: no turn or flip of the volume maps spots to spots.
SPOTS = np.array(
    [[-9, 2, 16], [10, 4, 15], [-20, -2, 3], [19, 0, 5], [-8, 7, -14], [9, 5, -16], [2, -18, -3],
     [-3, 17, -5]], float
)  # fmt: skip


def person(rng):
    """Spots of someone, LPS mm, and a scan of them."""
    spots = SPOTS + rng.normal(0, 1.0, 3) + rng.normal(0, 0.7, SPOTS.shape)
    points = apply_affine(MIDDLE, np.stack(np.indices(SHAPE), -1).astype(float))
    off = np.linalg.norm(points[..., None, :] - spots, axis=-1)
    image = np.exp(-0.5 * (off / 3) ** 2).sum(-1) + 0.03 * rng.normal(size=SHAPE)
    return spots, Scan((1000 * image).astype(np.float32), MIDDLE)


class Nearby:
    """Stands for a trained network: the brightest voxel near where each landmark usually is."""

    decoders = ("subvoxel",)

    def build(self):
        task = Task(scheme_of(NAMES), SHAPE, (0, 0, 0), SPACING, Augment())
        (stage,) = whole_volume_stage(dataclasses.replace(task, margin=(0, 0, 0)), self.predict)
        return Method(init=None, phases=(), stages=(stage,))

    @staticmethod
    def predict(variables, image):
        grids = jnp.stack(jnp.meshgrid(*map(jnp.arange, SHAPE), indexing="ij"), -1)
        usual = jnp.asarray(apply_affine(np.linalg.inv(MIDDLE), SPOTS), jnp.float32)
        near = jnp.exp(-0.5 * (((grids[..., None, :] - usual) * 2 / 8.0) ** 2).sum(-1))
        weight = image * near + variables.params["nothing"]
        flat = weight.reshape(weight.shape[0], -1, len(NAMES))
        best = flat.argmax(1)
        ijk = jnp.stack(jnp.unravel_index(best, SHAPE), -1).astype(jnp.float32)
        score = flat.max(1)
        contrast = jnp.log(score / jnp.abs(image).mean((1, 2, 3, 4))[:, None])
        return Prediction({"subvoxel": ijk}, score, contrast, spread_mm=2.0 / score)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    frame = Frame(
        register="none",
        metric="correlation",
        search_degrees=180.0,
        template=None,
        common_to_template=np.eye(4),
        grid_to_common=MIDDLE,
        shape=SHAPE,
        intensity="percentiles",
        intensity_range=(0.5, 99.9),
    )
    save_frame(frame, NAMES, folder)
    rng = np.random.default_rng(0)
    cases = []
    for number in range(36):
        spots, scan = person(rng)
        prepared = frame.prepare(scan)
        case = PreparedCase(
            f"c{number}", folder / f"c{number}", prepared.ijk_to_lps, spots,
            np.ones(8, bool), np.zeros(8, bool), extent_mm=prepared.extent_mm,
            voxel_mm=prepared.voxel_mm,
        )  # fmt: skip
        save_case(case, prepared.image, folder / "scan.nii")
        cases.append(load_case(case.folder))
    training, validation = cases[:20], cases[20:]
    method = Nearby()
    predictor = Predictor(method.build(), 2, data_mesh())
    variables = Variables({"nothing": jnp.zeros(())})
    found = list(predictor(variables, [case.volume for case in validation]))
    observed = calibration.observe(
        found, validation, NAMES, 7, training, spacing_mm=frame.spacing_mm, decoders=("subvoxel",)
    )
    calibration.save(observed, folder)
    return TrainedModel(
        experiment=Experiment(
            method=HeatmapRegression(),
            data=Data(crop=SHAPE, margin=0, spacing_mm=SPACING, workers=1),
            predict=Predict(batch=2, pictures=False),
        ),
        preparation=folder,
        frame=frame,
        scheme=scheme_of(NAMES),
        predictor=predictor,
        variables=variables,
        calibration=calibration.load(folder, NAMES, 7, "subvoxel", 0.9),
    )


def strangers(rng):
    """Name -> a scan that is none of these people's, or not in its place."""
    _, scan = person(rng)
    box = np.zeros(SHAPE, np.float32)
    box[5:-5, 5:-5, 5:-5] = 500
    turned = compose_affine(np.diag([1.0, -1.0, -1.0]), np.zeros(3))
    return {
        "noise": Scan(rng.normal(size=SHAPE).astype(np.float32), MIDDLE),
        "box": Scan(box, MIDDLE),
        "mirrored": Scan(np.ascontiguousarray(scan.voxels[:, :, ::-1]), MIDDLE),
        "upside_down": Scan(scan.voxels, turned @ MIDDLE),
    }


def test_strangers_are_refused_and_hidden_wherever_one_looks(model, tmp_path, capsys):
    rng = np.random.default_rng(1)
    scans = {**strangers(rng), "good": person(rng)[1]}
    for name, scan in scans.items():
        write_scan(tmp_path / "in" / f"{name}.nii.gz", scan.voxels, scan.ijk_to_lps)
    out = tmp_path / "out"
    outcome = predict_scans(model, scans_at(tmp_path / "in"), out)
    assert set(outcome.refused) == {"noise", "box", "mirrored", "upside_down"}
    assert "hidden in 4 of them, which are probably no such scans: box" in outcome.summary(out)
    said = [line for line in capsys.readouterr().err.splitlines() if "probably not such" in line]
    assert len(said) == 4 and all(
        "fewer than 1 in 1000 scans like the validation cases are refused)" in line for line in said
    )
    rows = list(csv.DictReader((out / "batch" / "landmarks.csv").read_text().splitlines()))
    for row in rows:
        stranger = row["case"] != "good"
        assert (row["hidden"] == REFUSED) == stranger == (row["radius_mm"] == "")
        assert row["doubts"].startswith("probably not such a scan") == stranger
    for name in scans:
        (markup,) = json.loads((out / f"{name}.mrk.json").read_text())["markups"]
        points = markup["controlPoints"]
        assert {point["visibility"] for point in points} == {name == "good"}
        words = {point["description"].startswith(f"hidden: {REFUSED}, ") for point in points}
        assert words == {name != "good"}
        assert list(read_landmarks(out / f"{name}.fcsv")) == list(NAMES)
    assert json.loads((out / "batch" / "batch.json").read_text())["refused"] == sorted(
        outcome.refused
    )


def test_good_scans_are_not_refused_and_hardly_doubted(model):
    rng = np.random.default_rng(2)
    said = []
    for _ in range(60):
        spots, scan = person(rng)
        found = model.predict(scan.voxels, scan.ijk_to_lps, "LPS")
        assert not found.refused and not found.hidden
        said.append(bool(found.doubts))
        assert np.median(np.linalg.norm(found.positions_mm - spots, axis=1)) < 2
    # One of a hundred for shapes, one of 250 each for intensities and evidence.
    assert sum(said) <= 4


def test_radii_are_those_of_the_scan_s_own_spread(model):
    rng = np.random.default_rng(3)
    _, scan = person(rng)
    sure = model.predict(scan.voxels, scan.ijk_to_lps, "LPS")
    faint = scan.voxels.copy()
    faint[: SHAPE[0] // 2] *= 0.6
    unsure = model.predict(faint, scan.ijk_to_lps, "LPS")
    right = [name.endswith("R") for name in NAMES]
    ratio = unsure.radius_mm / sure.radius_mm
    assert (ratio[right] > 1.3).all() and np.median(ratio[~np.array(right)]) < 1.1


def test_points_out_of_shape_and_exchanged_sides_are_named(model):
    rng = np.random.default_rng(4)
    usual, mirrored = model.calibration.shape, scheme_of(NAMES).mirrored
    everyone = np.ones(8, bool)

    def said(points, judged=everyone):
        return usual.doubts(points, judged, NAMES, mirrored)

    spots, _ = person(rng)
    assert said(spots) == []
    moved = spots.copy()
    moved[6] += [0, 0, 16]
    (line,) = said(moved)
    assert line.startswith("front: lies where the other landmarks make it unlikely (1 % of good")
    # What is not judged is not named.
    assert said(moved, np.arange(8) != 6) == []
    swapped = spots.copy()
    swapped[[0, 1]] = spots[[1, 0]]
    assert said(swapped) == ["top R and top L are probably exchanged"]
    (line,) = said(spots[mirrored])
    assert line.startswith("the landmarks lie as if right and left are exchanged (distance")
    (line,) = said(rng.normal(0, 20, (8, 3)))
    assert line.startswith("the landmarks are arranged as in none of the validation cases")
    # Nothing is known of so few.
    assert said(rng.normal(0, 20, (8, 3)), np.arange(8) < 4) == []


def test_shapes_survive_their_file_and_damage_is_named(model, tmp_path):
    folder = model.preparation
    again = shapes.load_shape(folder, NAMES, 7, "subvoxel")
    own = model.calibration.shape
    points = person(np.random.default_rng(5))[0]
    np.testing.assert_allclose(again.model.distances(points), own.model.distances(points))
    text = (folder / shapes.FILE).read_text()
    path = tmp_path / shapes.FILE
    assert shapes.load_shape(tmp_path, NAMES, 7, "subvoxel") is None
    path.write_text(text)
    refused(lambda: shapes.load_shape(tmp_path, NAMES, 8, "subvoxel"), "is of step 7")
    refused(lambda: shapes.load_shape(tmp_path, NAMES, 7, "argmax"), shapes.FILE, "lacks a field")
    path.write_text(text.replace('"validation"', '"training"'))
    refused(lambda: shapes.load_shape(tmp_path, NAMES, 7, "subvoxel"), shapes.FILE)


def test_what_an_earlier_version_observed_gives_its_radii_and_refuses_nothing(model, tmp_path):
    tree = json.loads((model.preparation / calibration.FILE).read_text())
    spread = tree.pop("spread_mm")
    (tmp_path / calibration.FILE).write_text(json.dumps(tree))
    # Left over: of a later model.
    (tmp_path / shapes.FILE).write_text((model.preparation / shapes.FILE).read_text())
    old = calibration.load(tmp_path, NAMES, 7, "subvoxel", 0.9)
    assert old.by_spread is None and old.shape is None and old.evidence is None
    np.testing.assert_array_equal(old.radii_mm(np.ones(8)), old.radius_mm)
    noise = strangers(np.random.default_rng(1))["noise"]
    before = dataclasses.replace(model, calibration=old)
    assert not before.predict(noise.voxels, noise.ijk_to_lps, "LPS").refused
    # A method that tells no spread.
    (tmp_path / calibration.FILE).write_text(json.dumps(tree | {"spread_mm": None}))
    without = calibration.load(tmp_path, NAMES, 7, "subvoxel", 0.9)
    assert without.by_spread is None and without.evidence is not None and without.shape is not None
    (tmp_path / calibration.FILE).write_text(json.dumps(tree | {"spread_mm": spread[:3]}))
    refused(
        lambda: calibration.load(tmp_path, NAMES, 7, "subvoxel", 0.9),
        "lacks a field or has a wrong",
    )
