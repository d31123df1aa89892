"""Experiments on pictures from files to figures: in mm on a common grid, in px on their own."""

import csv
import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused
from malformed_scans import nifti
from pictures import png, tiff, xray

from experiments import cardiac_sax, cephalogram, mouse_ct, mouse_ct_cascade
from jaxmark import workflow
from jaxmark.config import Augment, Data, Evaluate, Experiment, Predict, Train, validate
from jaxmark.core.anatomy import scheme_of
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import read_landmarks
from jaxmark.data.pictures import read_picture
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.system.devices import local_mesh

NAMES = ("bright", "broad")
SIZE_MM = 0.5


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) uint8 of about 40 x 32 pixels with two spots, and their places (2, 2) in pixels."""
    rng = np.random.default_rng(seed)
    width, height = 40 + seed % 3, 32 - seed % 2
    centres = np.array([[12.0, 16.0], [28.0, 14.0]]) + rng.uniform(-4, 4, (2, 2))
    y, x = np.mgrid[:height, :width]
    image = rng.normal(20, 3, (height, width))
    for (cx, cy), high, sigma in zip(centres, (200, 130), (1.5, 3.0), strict=True):
        image += high * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    return np.clip(image, 0, 255).astype(np.uint8), centres


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    lines = ["case,landmark,x_px,y_px"]
    for n in range(12):
        pixels, centres = drawn(n)
        ending, write = (".png", png) if n % 2 else (".tif", tiff)
        (folder / "images" / f"{n:03}{ending}").write_bytes(write(pixels))
        lines += [
            f"{n:03},{name},{x!r},{y!r}"
            for name, (x, y) in zip(NAMES, centres.tolist(), strict=True)
        ]
    (folder / "landmarks.csv").write_text("\n".join(lines))
    cases = [f"{n:03}" for n in range(12)]
    splits = {"train": cases[:7], "val": cases[7:10], "test": cases[10:]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


UNITS = {
    "mm": {"unit": "mm", "pixel_size_mm": SIZE_MM, "spacing_mm": (SIZE_MM, SIZE_MM, 1.0)},
    "px": {"unit": "px", "grid": "native", "spacing_mm": (1.0, 1.0, 1.0)},
}


@pytest.fixture(scope="module", params=UNITS)
def trained(request, root, tmp_path_factory):
    """Unit, work dir and run of a small network."""
    folder = tmp_path_factory.mktemp(request.param)
    experiment = Experiment(
        name="spots",
        data=Data(
            root=str(root),
            cache=str(folder / "cache"),
            crop=(40, 32, 1),
            margin=4,
            workers=1,
            **UNITS[request.param],
        ),
        method=HeatmapRegression(
            steps=120,
            widths=(8, 16, 16),
            head=0,
            loss="cross_entropy",
            sigma_mm=1.0 if request.param == "mm" else 2.0,
            learning_rate=5e-3,
        ),
        augment=Augment(translation_voxels=3),
        train=Train(batch=4, validate_every=60),
        predict=Predict(coverage=0.6),
        evaluate=Evaluate(sdr_thresholds_mm=(1.0, 2.5), sdr_thresholds_px=(2.0, 5.0)),
    )
    run = workflow.run_stages(experiment, folder / "work")
    return request.param, folder / "work", run


def test_errors_are_in_both_units_where_both_are_known(trained, capfd):
    unit, workdir, run = trained
    summary = workflow.evaluate(run)
    line = capfd.readouterr().out
    stored = json.loads((workdir / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert stored["unit"] == unit
    assert summary["mre_mm"] < summary["floors"]["mean_position"]["mre_mm"]
    if unit == "mm":
        also = stored["also"]
        assert also["unit"] == "px" and list(also["sdr"]) == ["2", "5"]
        assert also["mre"] == pytest.approx(stored["mre_mm"] / SIZE_MM)
        assert list(stored["sdr"]) == ["1", "2.5"]
        assert f" mm (median {stored['median_mm']:.3f}), {also['mre']:.3f} px (" in line
    else:
        assert stored["also"] is None and list(stored["sdr"]) == ["2", "5"]
        assert "mre_px" in stored and " mm" not in line
        text = (workdir / "evaluation" / "summary.json").read_text(encoding="utf-8")
        assert "_mm" not in text
        header = (workdir / "evaluation" / "points.csv").read_text(encoding="utf-8").splitlines()[0]
        assert "error_px" in header and "mm" not in header


def test_the_report_and_the_log_say_the_unit(trained):
    unit, workdir, _ = trained
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    text = page[: page.index("<details><summary>Config")]
    assert f"MRE ({unit})" in text and "SDR at 5 px" in text
    if unit == "px":
        assert " mm<" not in text and "(mm)" not in text
    assert "first pixel: right, down" in text


def test_predictions_are_tables_of_pixels(trained):
    unit, workdir, run = trained
    rows = list(csv.DictReader((workdir / "predictions" / "landmarks_subvoxel.csv").open()))
    assert [row["case"] for row in rows] == ["010", "010", "011", "011"]
    for row in rows:
        truth = dict(zip(NAMES, drawn(int(row["case"]))[1], strict=True))[row["landmark"]]
        found = np.array([float(row["x_px"]), float(row["y_px"])])
        assert np.linalg.norm(found - truth) < 6
        assert f"radius_{unit}" in row
        if unit == "mm":
            assert float(row["x_mm"]) == pytest.approx(found[0] * SIZE_MM)


def test_new_pictures_are_predicted_as_the_cohort_was(trained, root, tmp_path, capfd):
    unit, workdir, run = trained
    scans = tmp_path / "new"
    (scans / "cine").mkdir(parents=True)
    pixels, _ = drawn(10)
    (scans / "a.png").write_bytes(png(pixels))
    (scans / "b.tif").write_bytes(tiff(pixels))
    for n in range(2):
        content = xray(pixels.astype(np.uint16), spacing=(SIZE_MM,) * 2, instance=n + 1)
        (scans / "cine" / f"IM{n}").write_bytes(content)
    (scans / "volume.nii").write_bytes(nifti())
    (scans / "cut.png").write_bytes(png(pixels)[:-9])
    outcome = workflow.predict_batch(run.experiment, workdir, scans, tmp_path / "out")
    assert outcome.written == 4 and sorted(outcome.failures) == ["cut", "volume"]
    assert "has 6 x 5 x 4 voxels" in str(outcome.failures["volume"])
    found = {
        (row["case"], row["landmark"]): [float(row["x_px"]), float(row["y_px"])]
        for row in csv.DictReader((workdir / "predictions" / "landmarks_subvoxel.csv").open())
    }
    table = list(csv.DictReader((tmp_path / "out" / "batch" / "landmarks.csv").open()))
    assert {row["case"] for row in table} == {"a", "b", "cine-001", "cine-002"}
    for row in table:
        own = [float(row["x_px"]), float(row["y_px"])]
        np.testing.assert_allclose(own, found["010", row["landmark"]], atol=0.02)
    # In 3D Slicer's files the picture's world.
    scale = SIZE_MM if unit == "mm" else 1.0
    markups = read_landmarks(tmp_path / "out" / "a.mrk.json")
    for name, xyz in markups.items():
        np.testing.assert_allclose(xyz[:2] / scale, found["010", name], atol=0.02)
        assert xyz[2] == 0
    assert (tmp_path / "out" / "a.png").read_bytes()[:4] == b"\x89PNG"
    # All is done: nothing is predicted again.
    again = workflow.predict_batch(run.experiment, workdir, scans, tmp_path / "out")
    assert again.written == 0 and again.skipped == 4


def test_a_model_takes_files_images_and_arrays(trained, root):
    unit, workdir, run = trained
    model = workflow.load_model(workdir, run.experiment)
    pixels, _ = drawn(11)
    path = root / "images" / "011.png"
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing((SIZE_MM, SIZE_MM))
    results = [model.predict(scan) for scan in (path, image, pixels.T)]
    if unit == "mm":
        other = sitk.GetImageFromArray(pixels)
        other.SetSpacing((0.6, 0.6))
        refused(partial(model.predict, other), "image", "0.6 x 0.6 mm", "pixel_size_mm 0.5")
    refused(partial(model.predict, pixels.T, np.eye(4), "LPS"), "array", "no affine")
    for found in results[1:]:
        np.testing.assert_allclose(found.positions_mm, results[0].positions_mm, atol=1e-4)
    landmark = next(iter(results[0]))
    scale = SIZE_MM if unit == "mm" else 1.0
    np.testing.assert_allclose(landmark.position_px * scale, landmark.position_mm[:2])
    assert all(f" {unit} (60 %)" in words for words in results[0].descriptions().values())
    refused(partial(model.predict, np.zeros((40, 32, 9, 2))), "array", "4 axes")
    refused(partial(model.predict, sitk.Image(8, 8, 8, sitk.sitkUInt8)), "image", "two axes")


def test_a_model_in_mm_alone_needs_the_size_of_a_new_picture(trained, root):
    unit, workdir, run = trained
    run.experiment.data.pixel_size_mm = 0.0
    try:
        model = workflow.load_model(workdir, run.experiment)
        path = root / "images" / "011.png"
        if unit == "mm":
            refused(partial(model.predict, path), path, "config.data.pixel_size_mm")
        else:
            assert np.isfinite(model.predict(path).positions_mm).all()
    finally:
        run.experiment.data.pixel_size_mm = UNITS[unit].get("pixel_size_mm", 0.0)


SAX = [f"{size}/{row}" for size in cardiac_sax.SIZES for row in cardiac_sax.ROWS]


@pytest.mark.parametrize(
    ("module", "preset"),
    [*((cephalogram, preset) for preset in ("", "small")), *((cardiac_sax, name) for name in SAX)],
)
def test_experiments_on_real_pictures_fit_their_networks(module, preset):
    experiment = validate(module.get_config(preset))
    task = workflow.task_of(experiment, scheme_of(("a", "b")), local_mesh())
    assert task.planar and experiment.method.build(task).phases


@pytest.mark.parametrize("module", [cephalogram, cardiac_sax, mouse_ct, mouse_ct_cascade])
def test_other_presets_are_refused(module):
    with pytest.raises(ValueError, match="there is no preset 'smal'"):
        module.get_config("smal")


@pytest.mark.parametrize(
    ("folder", "module", "cases", "names"),
    [("cephalogram", cephalogram, 150, 19), ("cardiac_sax", cardiac_sax, 415, 2)],
)
def test_real_folders_are_read_as_they_are(real_data, folder, module, cases, names):
    data = module.get_config().data
    found = read_cohort(dataclasses.replace(data, root=str(real_data / folder)))
    assert len(found.cases) == cases and len(found.names) == names
    assert found.splits["train"] and found.splits["val"]
    case = next(iter(found.cases.values()))
    scan = read_picture(case.scan, data.unit, case.pixel_size_mm)
    inside = case.landmarks_mm[:, :2] / scan.spacing_mm[:2] < scan.voxels.shape[:2]
    assert inside.all() and (case.landmarks_mm[:, 2] == 0).all()
