"""Raw scans in, landmarks out: places, promises, failures, and what a second start does."""

import csv
import dataclasses
import errno
import json
import os
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import random_rotation, refused
from malformed_scans import FILES, GREEDY
from PIL import Image

from experiments.dicom_files import single
from jaxmark.config import Augment, Data, Experiment, Predict
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.calibration import PresenceModel
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data import frame as frames
from jaxmark.data.chunks import Chunks
from jaxmark.data.frame import Frame, load_frame, save_frame
from jaxmark.data.landmarks import read_landmarks
from jaxmark.data.resampling import resample
from jaxmark.data.scans import Scan, read_scan, to_image, write_scan
from jaxmark.inference.calibration import Calibration
from jaxmark.inference.likeness import Usual
from jaxmark.inference.model import ABSENT, OUTSIDE, TrainedModel
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import Method, Prediction, Task, Variables, whole_volume_stage
from jaxmark.results.batch import predict_scans, scans_at
from jaxmark.system.devices import data_mesh
from jaxmark.system.errors import InputError

NAMES = ("all", "bright")
CROP, MARGIN, SPACING = (24, 20, 16), 2, (2.0, 2.0, 2.5)
# Three spots of different heights: no rotation or reflection maps them to each other.
SPOTS_MM = np.array([[-8.0, 3, 4], [9, 6, -5], [1, -9, 2]])
HEIGHTS, WIDTHS_MM = (1.0, 0.6, 0.8), (3.0, 4.5, 3.5)


def anatomy(points_mm):
    """Intensities in [0, 1] at LPS millimetres (..., 3)."""
    values = np.zeros(points_mm.shape[:-1])
    for spot, height, width in zip(SPOTS_MM, HEIGHTS, WIDTHS_MM, strict=True):
        values += height * np.exp(-((points_mm - spot) ** 2).sum(-1) / (2 * width**2))
    return values


def scan_of(shape, ijk_to_lps):
    grid = np.stack(np.indices(shape), -1).astype(float)
    return Scan((1000 * anatomy(apply_affine(ijk_to_lps, grid))).astype(np.float32), ijk_to_lps)


def straight(shape=(40, 36, 30), spacing=1.5):
    middle = -(np.array(shape) - 1) / 2 * spacing
    return scan_of(shape, compose_affine(np.eye(3) * spacing, middle))


class Centres:
    """Stands for a trained network: centres of mass, which move smoothly with the image."""

    def build(self):
        task = Task(scheme_of(NAMES), CROP, (MARGIN,) * 3, SPACING, Augment())
        return Method(init=None, phases=(), stages=whole_volume_stage(task, self.predict))

    @staticmethod
    def predict(variables, image):
        volume = image[..., 0]
        grids = jnp.stack(jnp.meshgrid(*map(jnp.arange, volume.shape[1:]), indexing="ij"), -1)

        def centre(weight):
            return jnp.einsum("bxyz,xyzi->bi", weight, grids) / weight.sum((1, 2, 3))[:, None]

        mass = jnp.maximum(volume - 0.1, 0)
        found = jnp.stack([centre(mass), centre(mass**6)], 1) + variables.params["shift"]
        peak = volume.max((1, 2, 3))[:, None] * jnp.ones((1, 2))
        positions = {"argmax": jnp.round(found), "subvoxel": found}
        return Prediction(positions, score=peak, evidence=peak * jnp.array([1, -1.0]))


def model(folder, register="none", workers=1, shift=0.0, template=None, grid=None, chunks=None):
    experiment = Experiment(
        method=HeatmapRegression(),
        data=Data(crop=CROP, margin=MARGIN, spacing_mm=SPACING, workers=workers),
        predict=Predict(batch=2),
    )
    middle = -(np.array(CROP) + 2 * MARGIN - 1) / 2 * SPACING
    frame = Frame(
        register=register,
        metric="correlation",
        search_degrees=180.0,
        template=template,
        common_to_template=np.eye(4),
        grid_to_common=compose_affine(np.diag(SPACING), middle) if grid is None else grid,
        shape=tuple(n + 2 * MARGIN for n in CROP),
        intensity="percentiles",
        intensity_range=(0.5, 100.0),
        quality_limit=0.8,
        chunks=chunks,
    )
    save_frame(frame, NAMES, folder)
    promises = Calibration(0.9, np.array([2.5, np.inf]), PresenceModel(np.zeros(2), 2.0))
    return TrainedModel(
        experiment=experiment,
        preparation=folder,
        frame=frame,
        scheme=scheme_of(NAMES),
        predictor=Predictor(Centres().build(), 2, data_mesh()),
        variables=Variables({"shift": jnp.array(shift)}),
        calibration=promises,
    )


@pytest.fixture
def here(tmp_path):
    return model(tmp_path / "model")


def write(path, scan):
    write_scan(path, scan.voxels, scan.ijk_to_lps)
    return path


def positions(folder, case):
    found = read_landmarks(folder / f"{case}.mrk.json")
    return np.stack([found[name] for name in NAMES])


def test_every_case_has_its_files_and_they_agree(here, tmp_path):
    source = write(tmp_path / "in" / "one.nii.gz", straight())
    out = tmp_path / "out"
    outcome = predict_scans(here, scans_at(tmp_path / "in"), out)
    assert (outcome.written, outcome.skipped, outcome.failures) == (1, 0, {})
    points = read_landmarks(out / "one.mrk.json")
    assert list(points) == list(NAMES)
    for other in (read_landmarks(out / "one.fcsv"), read_landmarks(out / "one.csv")):
        for name in NAMES:
            np.testing.assert_array_equal(other[name], points[name])
    # The centre of mass of what the grid shows, by hand.
    grid = np.stack(np.indices((300, 260, 240)), -1) * 0.2 - [30, 26, 24]
    mass = np.maximum(anatomy(grid) / anatomy(grid).max() - 0.1, 0)
    expected = (mass[..., None] * grid).sum((0, 1, 2)) / mass.sum()
    assert np.linalg.norm(points["all"] - expected) < 0.5
    markup = json.loads((out / "one.mrk.json").read_text())["markups"][0]
    seen = [point["visibility"] for point in markup["controlPoints"]]
    # Evidence above 0 and below it: there, and rather not there.
    assert seen == [True, False]
    words = [point["description"] for point in markup["controlPoints"]]
    score = float(words[0].rpartition(" ")[2])
    there = 1 / (1 + np.exp(-2 * score))
    assert words[0] == f"presence {there:.2f}, within 2.5 mm (90 %), score {score:.3f}"
    assert words[1] == f"presence {1 - there:.2f}, score {score:.3f}"
    assert Image.open(out / "one.png").size[0] == 1400
    row = next(csv.DictReader((out / "batch" / "landmarks.csv").read_text().splitlines()))
    assert row["case"] == "one" and row["radius_mm"] == "2.5"
    record = json.loads((out / "batch" / "cases" / "one.json").read_text())
    assert record["made_from"]["scan"] == str(source)
    assert record["landmarks"]["bright"]["radius_mm"] is None


def test_a_landmark_that_no_training_case_has_is_hidden_everywhere(here, tmp_path):
    frame = dataclasses.replace(here.frame, untrained=("all",))
    save_frame(frame, NAMES, here.preparation)
    assert load_frame(here.preparation)[0].untrained == ("all",)
    write(tmp_path / "in" / "one.nii.gz", straight())
    out = tmp_path / "out"
    predict_scans(dataclasses.replace(here, frame=frame), scans_at(tmp_path / "in"), out)
    markup = json.loads((out / "one.mrk.json").read_text())["markups"][0]
    first = markup["controlPoints"][0]
    assert first["label"] == "all" and not first["visibility"]
    assert first["description"].startswith("hidden: no training case has it, score ")
    for table in (out / "one.csv", out / "batch" / "landmarks.csv"):
        row, other = csv.DictReader(table.read_text().splitlines())
        assert (row["presence"], row["radius_mm"]) == ("", "")
        assert row["doubts"] == "no training case has it" and other["doubts"] == ""
    assert json.loads((out / "batch" / "cases" / "one.json").read_text())["untrained"] == ["all"]
    found = dataclasses.replace(here, frame=frame).predict(tmp_path / "in" / "one.nii.gz")
    assert [landmark.trained for landmark in found] == [False, True]


def test_a_frame_of_an_earlier_version_names_no_untrained_landmarks(here):
    path = here.preparation / "frame.json"
    assert "untrained" not in json.loads(path.read_text())
    assert load_frame(here.preparation)[0].untrained == ()
    path.write_text(json.dumps({**json.loads(path.read_text()), "untrained": ["nobody"]}))
    with pytest.raises(InputError, match=r"frame\.json"):
        load_frame(here.preparation)


def test_a_scan_unlike_the_validation_cases_is_doubted_everywhere(here, tmp_path, capsys):
    scan = straight()
    usual = frame_like(here, scan)
    model = dataclasses.replace(
        here, calibration=dataclasses.replace(here.calibration, usual=usual)
    )
    # What was predicted before anything was known of it is not the same any more.
    assert model.identity != here.identity
    write(tmp_path / "in" / "good.nii.gz", scan)
    noise = np.random.default_rng(0).random(scan.voxels.shape).astype(np.float32)
    write(tmp_path / "in" / "noise.nii.gz", Scan(noise, scan.ijk_to_lps))
    out = tmp_path / "out"
    predict_scans(model, scans_at(tmp_path / "in"), out)
    said = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert said and all("noise.nii.gz: " in line for line in said)
    rows = list(csv.DictReader((out / "batch" / "landmarks.csv").read_text().splitlines()))
    assert {row["case"] for row in rows if row["doubts"]} == {"noise"}
    doubts = json.loads((out / "batch" / "cases" / "noise.json").read_text())["doubts"]
    assert any(line.startswith("intensities unlike the validation cases'") for line in doubts)


def frame_like(model, scan):
    """What is usual, where validation cases are nearly this scan."""
    prepared = model.frame.apply(scan, model.frame.align(scan))
    rng = np.random.default_rng(0)
    rows = range(6)
    return Usual(
        of="validation",
        profile=np.stack([prepared.profile * rng.uniform(0.95, 1.05) for _ in rows]),
        overlap=np.array([prepared.overlap for _ in rows]),
        extent_mm=np.stack([prepared.extent_mm for _ in rows]),
        voxel_mm=np.stack([prepared.voxel_mm for _ in rows]),
        evidence=None,
    )


def variants(scan, rng):
    """The same anatomy in other arrays: flipped, permuted, and on turned and finer grids."""
    size = np.array(scan.voxels.shape)
    for axes in ((0,), (1,), (2,), (0, 1, 2)):
        flip = np.eye(4)
        for axis in axes:
            flip[axis, axis], flip[axis, 3] = -1, size[axis] - 1
        yield f"flip{axes}", Scan(np.flip(scan.voxels, axes), scan.ijk_to_lps @ flip)
    for order in ((1, 0, 2), (2, 0, 1), (0, 2, 1)):
        permuted = np.eye(4)
        permuted[:3, :3] = np.eye(3)[:, order]
        yield f"order{order}", Scan(scan.voxels.transpose(order), scan.ijk_to_lps @ permuted)
    for number in range(3):
        # Its own spacing an axis, in any direction, around the same centre.
        spacing = rng.uniform(0.6, 1.3, 3) * scan.spacing_mm.mean()
        shape = tuple(np.ceil(1.75 * (size * scan.spacing_mm).max() / spacing).astype(int).tolist())
        axes = random_rotation(rng) * spacing
        centre = apply_affine(scan.ijk_to_lps, (size - 1) / 2)
        grid = compose_affine(axes, centre - axes @ ((np.array(shape) - 1) / 2))
        yield f"oblique{number}", Scan(resample(scan, shape, grid), grid)


@pytest.mark.parametrize("register", ["none", "rigid"])
def test_predictions_stay_put_however_the_array_is_stored(register, tmp_path):
    scan = straight()
    template = scan if register == "rigid" else None
    found = model(tmp_path / "model", register, template=template)
    write(tmp_path / "in" / "plain.nii.gz", scan)
    rng = np.random.default_rng(0)
    for name, other in variants(scan, rng):
        write(tmp_path / "in" / f"{name}.nrrd", other)
    out = tmp_path / "out"
    outcome = predict_scans(found, scans_at(tmp_path / "in"), out)
    assert not outcome.failures and outcome.written == 11
    expected = positions(out, "plain")
    for name in scans_at(tmp_path / "in"):
        moved = np.linalg.norm(positions(out, name) - expected, axis=1)
        # Other voxels of the same scan are the same numbers; an oblique grid blurs them.
        limit = min(SPACING) / 2 if "oblique" in name else 0.05
        assert moved.max() < limit, (name, moved)


@pytest.mark.real_data
def test_predictions_of_a_real_scan_stay_put_however_it_is_stored(real_data, tmp_path):
    path = sorted((real_data / "mouse_ct" / "images").glob("*.nii.gz"))[0]
    head = read_scan(path)
    # Half of its resolution is enough here.
    half = tuple(n // 2 for n in head.voxels.shape)
    coarse = head.ijk_to_lps @ np.diag([2.0, 2.0, 2.0, 1.0])
    scan = Scan(resample(head, half, coarse), coarse)
    grid = compose_affine(np.eye(3), apply_affine(coarse, np.array(half) / 2) - [14, 12, 10])
    found = model(tmp_path / "model", "rigid", template=scan, grid=grid)
    write(tmp_path / "in" / "plain.nrrd", scan)
    rng = np.random.default_rng(0)
    for name, other in variants(scan, rng):
        write(tmp_path / "in" / f"{name}.nrrd", other)
    predict_scans(found, scans_at(tmp_path / "in"), tmp_path / "out")
    expected = positions(tmp_path / "out", "plain")
    for name in scans_at(tmp_path / "in"):
        moved = np.linalg.norm(positions(tmp_path / "out", name) - expected, axis=1)
        # A voxel of the grid is 1 mm.
        assert moved.max() < (0.5 if "oblique" in name else 0.05), (name, moved)


def test_a_moved_head_is_found_where_it_is(tmp_path):
    scan = straight()
    found = model(tmp_path / "model", "rigid", template=scan)
    write(tmp_path / "in" / "plain.mha", scan)
    rng = np.random.default_rng(5)
    motion = compose_affine(random_rotation(rng), [40.0, -25.0, 10.0])
    write(tmp_path / "in" / "moved.mha", Scan(scan.voxels, motion @ scan.ijk_to_lps))
    predict_scans(found, scans_at(tmp_path / "in"), tmp_path / "out")
    expected = apply_affine(motion, positions(tmp_path / "out", "plain"))
    error = np.linalg.norm(positions(tmp_path / "out", "moved") - expected, axis=1)
    assert error.max() < 0.5


def test_a_dicom_series_is_a_scan(here, tmp_path):
    scan = straight()
    write(tmp_path / "in" / "plain.nii.gz", scan)
    image = to_image(scan.voxels.astype(np.int16), scan.ijk_to_lps)
    folder = tmp_path / "in" / "patient" / "study" / "series"
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(image.GetSize()[2]):
        part = image[:, :, number]
        place = image.TransformIndexToPhysicalPoint((0, 0, number))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"1.2.826.9.{number}",
            "0020|000d": "1.2.826.5",
            "0020|000e": "1.2.826.1",
            "0020|0032": "\\".join(f"{v:.10g}" for v in place),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number:03d}.dcm"))
        writer.Execute(part)
    sources = scans_at(tmp_path / "in")
    assert list(sources) == ["plain", "series"]
    predict_scans(here, sources, tmp_path / "out")
    moved = positions(tmp_path / "out", "series") - positions(tmp_path / "out", "plain")
    assert np.abs(moved).max() < 0.05
    # The folder itself as the input.
    assert list(scans_at(folder)) == ["series"]


def test_each_series_of_a_folder_is_predicted(here, tmp_path):
    """Each is written under its name, and again when the folder has changed."""
    scan = straight()
    write(tmp_path / "in" / "plain.nii.gz", scan)
    folder = tmp_path / "in" / "patient"
    folder.mkdir()
    places = scan.ijk_to_lps
    for uid, name in (("1.2.826.1", "TOF"), ("1.2.826.2", "T1")):
        for k in range(scan.voxels.shape[2]):
            content = single(
                scan.voxels[:, :, k].T.astype(np.int16),
                apply_affine(places, np.array([0, 0, k])),
                (1, 0, 0, 0, 1, 0),
                (places[1, 1], places[0, 0]),
                uid=uid,
                description=name,
            )
            (folder / f"{name}{k}").write_bytes(content)
    names = ["patient-T1", "patient-TOF", "plain"]
    assert list(scans_at(tmp_path / "in")) == names
    assert predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out").written == 3
    for name in names[:2]:
        moved = positions(tmp_path / "out", name) - positions(tmp_path / "out", "plain")
        assert np.abs(moved).max() < 0.05
    assert predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out").skipped == 3
    (folder / "note.txt").touch()
    assert predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out").written == 2


def bad_scans(folder, good):
    """Scans that cannot be predicted, and what is said of them."""
    raw = good.read_bytes()
    text = {
        "empty.nii.gz": b"",
        "cut.nii.gz": raw[: len(raw) // 2],
        "text.nii": b"this is not a scan, though it says so" * 20,
        "picture.nrrd": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for name, content in text.items():
        (folder / name).write_bytes(content)
    scan = read_scan(good)
    flat = np.zeros_like(scan.voxels)
    write_scan(folder / "flat.mha", flat, scan.ijk_to_lps)
    flat[0, 0, 0] = 1
    write_scan(folder / "nothing there.mha", flat, scan.ijk_to_lps)
    away = scan.ijk_to_lps.copy()
    away[:3, 3] += 5000
    write_scan(folder / "away.mha", scan.voxels, away)
    holes = scan.voxels.copy()
    holes[3, 3, 3] = np.inf
    write_scan(folder / "holes.nrrd", holes, scan.ijk_to_lps)
    (folder / "link.nii.gz").symlink_to(folder / "nowhere.nii.gz")
    long = "n" * 190 + ".nii.gz"
    shutil.copy(good, folder / long)
    return {*text, "flat.mha", "nothing there.mha", "away.mha", "holes.nrrd", "link.nii.gz", long}


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_scans_are_named_and_the_others_are_done(workers, tmp_path, capfd):
    found = model(tmp_path / "model", workers=workers)
    good = write(tmp_path / "in" / "a <b>&'good one'.nii.gz", straight())
    bad = bad_scans(tmp_path / "in", good)
    before = tree(tmp_path)
    outcome = predict_scans(found, scans_at(tmp_path / "in"), tmp_path / "out")
    assert outcome.written == 1 and len(outcome.failures) == len(bad)
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(bad)
    for name in bad:
        (line,) = [line for line in errors if f"in/{name}: " in line]
        print(line)
    name = "a <b>&'good one'"
    assert tree(tmp_path) - before == {
        "out", "out/batch", "out/batch/cases", "out/batch/batch.json", "out/batch/landmarks.csv",
        f"out/batch/cases/{name}.json",
        *(f"out/{name}.{end}" for end in ("mrk.json", "fcsv", "csv", "png")),
    }  # fmt: skip
    batch = json.loads((tmp_path / "out" / "batch" / "batch.json").read_text())
    assert (batch["scans"], batch["written"], len(batch["failed"])) == (len(bad) + 1, 1, len(bad))
    assert f"{len(bad)} failed" in outcome.summary(tmp_path / "out")


def test_names_cost_one_line_each_and_reach_no_terminal(here, tmp_path, capfd):
    """Names of files and folders, as bytes that a stranger chose."""
    root = os.fsencode(tmp_path / "in")
    scan = write(tmp_path / "in" / "a.mha", straight())
    good = [b"below\x1b[2J/b.mha", b"below\xff/c.mha", "d\u00e9 <i>&'.mha".encode()]
    # The second "a" of a far folder is called by a path that is too long for a file's name.
    bad = [b"e\x1b[31m.mha", b"f\xff.mha", b"=g.mha", b"CON.mha", b"h\n.mha", b"i\\j.mha"]
    bad += [b"n" * 181 + b".mha", b"/".join([b"far" * 50] * 3) + b"/a.mha"]
    for name in (*good, *bad):
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(scan, path)
    outcome = predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out")
    assert (outcome.written, len(outcome.failures)) == (4, len(bad))
    said = capfd.readouterr()
    assert sum(line.startswith("error: ") for line in said.err.splitlines()) == len(bad)
    assert "\x1b[" not in (said.out + said.err).replace("\x1b[A", "")
    record = json.loads((tmp_path / "out" / "batch" / "cases" / "c.json").read_text())
    assert record["made_from"]["scan"] == str(tmp_path / "in" / "below\udcff" / "c.mha")
    assert predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out").skipped == 4


@pytest.mark.parametrize("field", ["model", "made_from", "landmarks", "lps_mm", "score"])
def test_a_damaged_record_is_made_anew(field, here, tmp_path):
    write(tmp_path / "in" / "a.mha", straight())
    out = tmp_path / "out"
    predict_scans(here, scans_at(tmp_path / "in"), out)
    record = out / "batch" / "cases" / "a.json"
    whole = json.loads(record.read_text())
    for value in (None, [], {"a": 1}, "x", 1e400):
        tree = json.loads(record.read_text())
        holder = tree["landmarks"]["all"] if field in ("lps_mm", "score") else tree
        # Nothing is known of a landmark's score: that is allowed.
        holder[field] = [1, 2, "x"] if field == "score" and value is None else value
        record.write_text(json.dumps(tree))
        assert predict_scans(here, scans_at(tmp_path / "in"), out).written == 1
        assert json.loads(record.read_text()) == whole


def test_hostile_scans_leave_nothing_and_cost_nobody_else(here, tmp_path, capfd):
    """Every malformed file of `malformed_scans` beside a good one, each in a folder of its own."""
    write(tmp_path / "in" / "good.nii.gz", straight())
    count = 0
    for number, (name, content, _) in enumerate([*FILES.values(), *GREEDY.values()]):
        path = tmp_path / "in" / f"{number:03d}" / name
        path.parent.mkdir()
        path.write_bytes(content())
        count += 1
    before = tree(tmp_path)
    outcome = predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out")
    assert (outcome.written, len(outcome.failures)) == (1, count) and count > 150
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == count
    for error in outcome.failures.values():
        assert str(error).startswith(str(tmp_path / "in"))
    written = {name for name in tree(tmp_path) - before if (tmp_path / name).is_file()}
    assert written == {
        "out/batch/batch.json", "out/batch/landmarks.csv", "out/batch/cases/good.json",
        *(f"out/good.{end}" for end in ("mrk.json", "fcsv", "csv", "png")),
    }  # fmt: skip


def test_a_second_start_does_what_is_not_done(here, tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / "in" / f"{name}.nii.gz", straight())
    out = tmp_path / "out"
    predict_scans(here, scans_at(tmp_path / "in"), out)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.mrk.json")}
    (out / "b.png").unlink()
    # Another scan under the name of one that is done.
    write(tmp_path / "in" / "c.nii.gz", straight((44, 36, 30)))
    again = predict_scans(here, scans_at(tmp_path / "in"), out)
    assert (again.written, again.skipped) == (2, 1)
    assert (out / "b.png").exists()
    changed = {path.name for path in stamps if path.stat().st_mtime_ns != stamps[path]}
    assert changed == {"b.mrk.json", "c.mrk.json"}
    # Another model knows nothing of what this one did.
    other = model(tmp_path / "model", shift=1.0)
    assert predict_scans(other, scans_at(tmp_path / "in"), out).written == 3
    rows = list(csv.DictReader((out / "batch" / "landmarks.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == [case for case in "abc" for _ in NAMES]


def test_what_an_earlier_run_made_of_a_scan_that_now_fails_is_gone(here, tmp_path):
    path = write(tmp_path / "in" / "a.nii.gz", straight())
    write(tmp_path / "in" / "b.nii.gz", straight())
    predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out")
    path.write_bytes(b"overwritten by accident")
    outcome = predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out")
    assert list(outcome.failures) == ["a"] and outcome.skipped == 1
    assert not list((tmp_path / "out").rglob("a.*"))
    assert (tmp_path / "out" / "b.mrk.json").exists()


def test_processes_give_the_same_numbers_as_one(tmp_path):
    rng = np.random.default_rng(2)
    for number in range(5):
        shift = compose_affine(np.eye(3), rng.uniform(-3, 3, 3))
        scan = straight()
        write(tmp_path / "in" / f"{number}.mha", Scan(scan.voxels, shift @ scan.ijk_to_lps))
    for workers in (1, 2):
        found = model(tmp_path / f"model{workers}", workers=workers)
        predict_scans(found, scans_at(tmp_path / "in"), tmp_path / f"out{workers}")
    for number in range(5):
        one, two = (tmp_path / f"out{w}" / f"{number}.mrk.json" for w in (1, 2))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_images_on_the_disk_change_no_prediction_and_none_stays(workers, tmp_path, capfd):
    # Enough scans that there are processes.
    for number in range(4):
        write(tmp_path / "in" / f"{number}.nii.gz", straight(spacing=1.5 + 0.05 * number))
    cut = tmp_path / "in" / "cut.nii.gz"
    cut.write_bytes((tmp_path / "in" / "0.nii.gz").read_bytes()[:3000])
    out = {name: tmp_path / name for name in ("memory", "disk")}
    # Of a start that was killed.
    left = out["disk"] / "batch" / ".prepared-1" / "0"
    left.mkdir(parents=True)
    (left / "chunks.npy").write_bytes(b"half")
    predict_scans(model(tmp_path / "plain"), scans_at(tmp_path / "in"), out["memory"])
    found = model(tmp_path / "model", workers=workers, chunks=Chunks(2))
    outcome = predict_scans(found, scans_at(tmp_path / "in"), out["disk"])
    assert outcome.written == 4 and list(outcome.failures) == ["cut"]
    assert not list((out["disk"] / "batch").glob(".*"))
    for case in map(str, range(4)):
        apart = positions(out["disk"], case) - positions(out["memory"], case)
        assert np.abs(apart).max() < 0.01
        assert (out["disk"] / f"{case}.png").exists()
    alone = found.predict(tmp_path / "in" / "2.nii.gz")
    np.testing.assert_allclose(alone.positions_mm, positions(out["disk"], "2"), atol=1e-3)


def test_a_disk_without_room_for_an_image_costs_a_line(tmp_path, monkeypatch, capfd):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / "in" / "a.nii.gz", straight())
    found = model(tmp_path / "model", chunks=Chunks(2))
    monkeypatch.setattr(frames, "write_chunks", full)
    outcome = predict_scans(found, scans_at(tmp_path / "in"), tmp_path / "out")
    assert "cannot be stored in" in str(outcome.failures["a"])
    assert "No space left on device" in capfd.readouterr().err
    assert not list((tmp_path / "out" / "batch").glob(".*"))


def test_a_stored_image_is_deleted_whatever_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    found = model(tmp_path / "model", chunks=Chunks(2))
    scan = straight()
    by_array = found.predict(scan.voxels, scan.ijk_to_lps, "LPS")
    by_image = found.predict(to_image(scan.voxels, scan.ijk_to_lps))
    np.testing.assert_allclose(by_array.positions_mm, by_image.positions_mm, atol=1e-3)
    with pytest.raises(InputError, match="lies outside"):
        found.predict(scan.voxels, compose_affine(np.eye(3), np.full(3, 900.0)), "LPS")
    assert not list((tmp_path / "temporary").iterdir())


def test_landmarks_at_the_border_of_a_scan_are_doubted(tmp_path):
    # The brightest of it is cut off, and most of the volume is not there.
    scan = straight()
    part = Scan(scan.voxels[26:], scan.ijk_to_lps @ compose_affine(np.eye(3), np.array([26, 0, 0])))
    shifted = model(tmp_path / "model", shift=-12.0, chunks=Chunks(2))
    doubts = shifted.predict(part.voxels, part.ijk_to_lps, "LPS").doubts
    # What is rather not there is not called outside.
    assert "all: outside of the scan, hidden" in doubts
    assert "bright: at the border of the scan or outside, with little to see" in doubts
    assert any("of the prepared volume lies in the scan" in doubt for doubt in doubts)
    inside = model(tmp_path / "other", chunks=Chunks(2)).predict(
        scan.voxels, scan.ijk_to_lps, "LPS"
    )
    assert not any("border" in doubt for doubt in inside.doubts)


def test_a_landmark_outside_of_the_scan_is_hidden_and_has_no_radius(tmp_path):
    scan = straight()
    part = Scan(scan.voxels[20:], scan.ijk_to_lps @ compose_affine(np.eye(3), np.array([20, 0, 0])))
    write(tmp_path / "in" / "part.nii.gz", part)
    found = model(tmp_path / "model", shift=-12.0)
    out = tmp_path / "out"
    predict_scans(found, scans_at(tmp_path / "in"), out)
    (markup,) = json.loads((out / "part.mrk.json").read_text())["markups"]
    first = markup["controlPoints"][0]
    assert not first["visibility"]
    assert first["description"].startswith("hidden: outside of the scan, presence 0.00, score ")
    for table in (out / "part.csv", out / "batch" / "landmarks.csv"):
        row, other = csv.DictReader(table.read_text().splitlines())
        assert (row["presence"], row["radius_mm"], row["hidden"]) == ("0.0", "", OUTSIDE)
        assert "all: outside of the scan, hidden" in row["doubts"] and other["hidden"] == ABSENT
    assert json.loads((out / "batch" / "cases" / "part.json").read_text())["outside"] == ["all"]
    landmark, other = found.predict(tmp_path / "in" / "part.nii.gz")
    assert (landmark.hidden, landmark.radius_mm, other.hidden) == (OUTSIDE, None, ABSENT)
    # Where nothing is known of absence, either.
    blind = dataclasses.replace(found.calibration, presence_model=None)
    said = dataclasses.replace(found, calibration=blind).predict(tmp_path / "in" / "part.nii.gz")
    assert said.hidden == ("all", "bright") and set(said.presence) == {0.0}


def test_doubtful_scans_are_pointed_out(tmp_path, capfd):
    scan = straight()
    found = model(tmp_path / "model", "rigid", template=scan)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=scan.voxels.shape).astype(np.float32)
    write(tmp_path / "in" / "noise.mha", Scan(noise, scan.ijk_to_lps))
    predict_scans(found, scans_at(tmp_path / "in"), tmp_path / "out")
    warned = capfd.readouterr().err
    assert "warning: " in warned and "noise.mha: registration quality" in warned
    record = json.loads((tmp_path / "out" / "batch" / "cases" / "noise.json").read_text())
    assert "probably failed" in record["doubts"][0]


def test_what_was_mended_in_a_scan_is_noted_and_is_no_doubt(here, tmp_path, capfd):
    scan = straight()
    voxels = scan.voxels.copy()
    voxels[:2] = np.nan
    for number in range(7):
        write(tmp_path / "in" / f"{number}.nii.gz", Scan(voxels, scan.ijk_to_lps))
    write(tmp_path / "in" / "whole.nii.gz", scan)
    predict_scans(here, scans_at(tmp_path / "in"), tmp_path / "out")
    said = capfd.readouterr().err
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("note: ")]
    assert lines == [
        f"note: {tmp_path}/in/{number}.nii.gz: 5.0 % of its voxels are NaN: filled with its "
        f"smallest value, {scan.voxels[2:].min():g}"
        for number in range(5)
    ] + ["note: 2 more scans have notes: see batch/cases/<case>.json"]
    assert "warning" not in said
    for number in range(7):
        record = json.loads((tmp_path / "out" / "batch" / "cases" / f"{number}.json").read_text())
        assert record["doubts"] == [] and "NaN" in record["notes"][0]
    record = json.loads((tmp_path / "out" / "batch" / "cases" / "whole.json").read_text())
    assert record["notes"] == []
    found = here.predict(tmp_path / "in" / "3.nii.gz")
    assert len(found.notes) == 1 and found.doubts == ()
    assert here.predict(voxels, affine=scan.ijk_to_lps, frame="LPS").notes == found.notes


def test_inputs_and_outputs_that_cannot_be_are_named(here, tmp_path):
    refused(lambda: scans_at(tmp_path / "none"), tmp_path / "none", "no such file or folder")
    (tmp_path / "bare").mkdir()
    refused(lambda: scans_at(tmp_path / "bare"), tmp_path / "bare", "holds no scans (--input)")
    file = tmp_path / "file"
    file.write_text("")
    scan = write(tmp_path / "in" / "a.mha", straight())
    refused(lambda: predict_scans(here, {"a": scan}, file), file, "cannot be written")
