"""Exported models: what jaxmark says, said without it; and what can't be exported."""

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused
from running import ROOT, jaxmark

from jaxmark.config import Augment, Data, Experiment
from jaxmark.core.anatomy import Scheme, Segment
from jaxmark.core.calibration import PresenceModel, SpreadRadius
from jaxmark.core.geometry import apply_affine
from jaxmark.data.frame import Frame
from jaxmark.data.resampling import background, covered, resample
from jaxmark.data.scans import Scan, checked_scan, read_scan, write_scan
from jaxmark.inference import exported
from jaxmark.inference.calibration import Calibration
from jaxmark.inference.model import TrainedModel
from jaxmark.inference.portable import scaled
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.cardiac_gan import CardiacGAN
from jaxmark.methods.coarse_to_fine import CoarseToFine
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import Task
from jaxmark.methods.multitask import Multitask
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import SpatialConfiguration
from jaxmark.system.devices import local_mesh
from jaxmark.workflow import export, load_model

SCRIPT, SHORT = ROOT / "docs" / "use_export.py", ROOT / "docs" / "use_export_short.py"
# Runs a script in whose process nobody can import jaxmark.
ALONE = """
import runpy, sys
sys.modules["jaxmark"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SHAPE, MARGIN = (32, 16, 16), (4, 0, 0)
SCHEME = Scheme(
    "s",
    ("a R", "a L"),
    (("a R", "a L"),),
    (Segment("v", ("a R",)), Segment("w", ("a R", "a L"), True)),
)
TASK = Task(
    scheme=SCHEME,
    crop=(24, 16, 16),
    margin=MARGIN,
    spacing_mm=(1.0, 1.5, 1.0),
    augment=Augment(),
    shape_mm=np.array([[-4.0, 0, 0], [4, 0, 0]]),
)
FRAME = Frame(
    register="none",
    metric="correlation",
    search_degrees=0.0,
    template=None,
    common_to_template=np.eye(4),
    grid_to_common=np.diag([1.0, 1.5, 1.0, 1.0]),
    shape=SHAPE,
    intensity="percentiles",
    intensity_range=(0.5, 99.5),
)
METHODS = (
    HeatmapRegression(widths=(4, 8), head=4),
    Adversarial(widths=(4, 8), head=4, loss="cross_entropy", coordinates=True),
    RegressionClassification(stem=4, widths=(8, 8), blocks=(1, 1), head=4, local_widths=(4, 8)),
    SpatialConfiguration(filters=4, levels=2, downsample=4),
    SpatialConfiguration(recipe="later", filters=4, levels=1, downsample=4, spatial_levels=1),
    Multitask(widths=(4, 8), head=4),
)


def model_of(settings, frame=FRAME, task=TASK, calibration=None, preparation=Path()):
    """A model with random weights, and its method by platform."""

    def methods(kind):
        dtype = jnp.bfloat16 if kind == "gpu" else jnp.float32
        return settings.build(dataclasses.replace(task, platform=kind, dtype=dtype))

    method = methods("cpu")
    variables = method.init(jax.random.key(0)).variables
    statistics = jax.tree.map(jnp.ones_like, variables.statistics)
    model = TrainedModel(
        experiment=Experiment(name="e", data=Data(), method=settings),
        preparation=preparation,
        frame=frame,
        scheme=task.scheme,
        predictor=Predictor(method, 1, local_mesh()),
        variables=variables.replace(statistics=statistics),
        calibration=calibration or Calibration.unknown(len(task.landmarks), 0.9),
    )
    return model, methods


def scan_of(seed: int) -> Scan:
    """Noise with a bright spot; the grid reaches out of it.

    Voxels are the grid's: between two voxels of its border a scan is blended with what is outside,
    and NaN can't say that.
    """
    rng = np.random.default_rng(seed)
    voxels = 100 * rng.random((24, 20, 18))
    voxels[10 + seed, 8, 7] = 400
    place = np.diag([1.0, 1.5, 1.0, 1.0])
    place[:3, 3] = 3.0, -3.0, 2.0
    return checked_scan(voxels.astype(np.float32), place, "scan")


def raw(scan: Scan, frame: Frame) -> dict[str, np.ndarray]:
    """What a program takes of a scan."""
    grid = frame.align(scan).matrix @ frame.grid_to_common
    image, inside = (f(scan, frame.shape, grid) for f in (resample, covered))
    assert 0.3 < inside.mean() < 0.9
    image = np.where(inside, image, np.nan).astype(np.float32)
    return {"image": image, "background": np.float32(background(scan))}


def batch_of(scans, frame):
    return {
        name: np.stack([raw(scan, frame)[name] for scan in scans])
        for name in ("image", "background")
    }


def same(found, predictions, most=1e-4):
    for row, prediction in enumerate(predictions):
        expected = {
            "positions_ijk": prediction.positions_ijk["subvoxel"],
            "score": prediction.score,
            "evidence": prediction.evidence,
            **prediction.probabilities,
        }
        if prediction.spread_mm is not None:
            expected["spread_mm"] = prediction.spread_mm
        assert set(found) == set(expected)
        for name, values in expected.items():
            # A landmark in the air has a spread of many voxels.
            share = 1e-5 if name == "spread_mm" else 0
            seen = np.asarray(found[name][row])
            np.testing.assert_allclose(seen, values, atol=most, rtol=share, err_msg=name)


def predictions_of(model, scans):
    volumes = [model.frame.prepare(scan).volume("v") for scan in scans]
    return [found.prediction for found in model.predictor(model.variables, volumes)]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"intensity_range": (2.0, 60.0)},
        # Both percentiles are the same: contrast is in a few voxels.
        {"intensity_range": (40.0, 45.0)},
        {"intensity": "window", "intensity_range": (20.0, 90.0)},
    ],
)
def test_intensities_are_scaled_as_in_preparation(changed):
    frame = dataclasses.replace(FRAME, **changed)
    scan = scan_of(0)
    if changed.get("intensity_range") == (40.0, 45.0):
        scan = dataclasses.replace(scan, voxels=np.where(scan.voxels > 90, scan.voxels, 7))
    inputs = batch_of([scan], frame)
    made = np.asarray(scaled(frame, inputs["image"], inputs["background"]), np.float32)
    expected = np.asarray(frame.prepare(scan).image, np.float32)
    # A rounding of 16 bits.
    np.testing.assert_allclose(made[0], expected, rtol=2e-3, atol=1e-4)
    assert made.std() > 0.01


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: f"{type(s).__name__}")
def test_onnx_says_what_jax_says_in_any_batch(settings, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    pytest.importorskip("onnx", reason="pip install onnx")
    model, methods = model_of(settings)
    file = tmp_path / "m.onnx"
    exported.write(model, methods, file, tmp_path)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    scans = [scan_of(seed) for seed in range(3)]
    expected = predictions_of(model, scans)
    # Its heatmaps are flat before training, and where a flat one is highest is rounding's choice.
    most = 1e-3 if settings == METHODS[3] else 1e-4
    for count in (1, 3):
        inputs = batch_of(scans[:count], FRAME)
        found = dict(zip(names, session.run(None, inputs), strict=True))
        same(found, expected[:count], most)
    described = json.loads(session.get_modelmeta().custom_metadata_map["model.json"])
    assert described["outputs"].keys() == set(names)
    assert described["landmarks"] == ["a R", "a L"]


def test_openvino_reads_the_same_file(tmp_path):
    openvino = pytest.importorskip("openvino", reason="pip install openvino")
    pytest.importorskip("onnx", reason="pip install onnx")
    window = dataclasses.replace(FRAME, intensity="window", intensity_range=(0.0, 400.0))
    model, methods = model_of(METHODS[0], window)
    file = tmp_path / "m.onnx"
    exported.write(model, methods, file, tmp_path)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    program = openvino.Core().compile_model(file, "CPU", settings)
    scans = [scan_of(seed) for seed in range(2)]
    made = program(batch_of(scans, model.frame))
    found = {output.get_any_name(): made[output] for output in program.outputs}
    # Its sums round otherwise, and a network without training has broad peaks.
    same(found, predictions_of(model, scans), most=1e-3)


def test_convolutions_of_volumes_are_convolutions(tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    model, methods = model_of(METHODS[0])
    file = tmp_path / "m.onnx"
    exported.write(model, methods, file, tmp_path)
    graph = onnx.load(file).graph
    kinds = [node.op_type for node in graph.node]
    shapes = {c.name: tuple(c.dims) for c in graph.initializer}
    kernels = [shapes[n.input[1]] for n in graph.node if n.op_type == "Conv"]
    # Three blocks of two convolutions each, and those of one voxel.
    assert [k[2:] for k in kernels].count((3, 3, 3)) == 6
    assert kinds.count("ConvTranspose") == kinds.count("MaxPool") == 1
    assert kinds.count("GroupNormalization") == 6


def test_jax_says_it_too_and_knows_a_gpu(tmp_path):
    model, methods = model_of(METHODS[0])
    file = tmp_path / "m.jax.zip"
    exported.write(model, methods, file, tmp_path)
    archive = np.load(file)
    described = json.loads(archive["model.json"])
    programs = {
        name: jax.export.deserialize(bytearray(archive[p["file"]]))
        for name, p in described["programs"].items()
    }
    assert programs["cuda"].platforms == ("cuda",)
    weights = {name: archive[name] for name in described["weights"]}
    scans = [scan_of(seed) for seed in range(3)]
    expected = predictions_of(model, scans)
    for count in (1, 3):
        inputs = batch_of(scans[:count], FRAME)
        same(programs["cpu"].call(weights, inputs["image"], inputs["background"]), expected[:count])
    # Nothing of this machine, nor of the code that it compiles for itself.
    for name in described["programs"].values():
        content = archive[name["file"]]
        assert str(ROOT).encode() not in content and b"jaxmark_convolve" not in content


@pytest.mark.parametrize("suffix", [".onnx", ".jax.zip"])
def test_the_same_model_is_the_same_bytes(suffix, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnx", reason="pip install onnx")
    contents = []
    for name in ("one", "two"):
        model, methods = model_of(METHODS[0])
        exported.write(model, methods, tmp_path / f"{name}{suffix}", tmp_path)
        contents.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert contents[0] == contents[1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model that training has left."""
    folder = tmp_path_factory.mktemp("work")
    with tarfile.open(ROOT / "tests" / "work_dirs" / "heatmap.tar.xz") as archive:
        kind = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **kind)
    return folder / "heatmap"


def landmarks_by(script, file, scan):
    """Names, and (K, 3) LPS mm, that a script of the documentation prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(script), str(file), str(scan)],
        capture_output=True,
        encoding="utf-8",
        cwd=scan.parent,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [name for name, *_ in rows], np.array([row[1:4] for row in rows], float)


@pytest.mark.parametrize("suffix", [".onnx", ".jax.zip"])
def test_the_scripts_of_the_documentation_need_no_jaxmark(suffix, workdir, tmp_path):
    file, scan = tmp_path / f"model{suffix}", tmp_path / "scan.nii.gz"
    if suffix == ".onnx":
        pytest.importorskip("onnx", reason="pip install onnx")
        pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
        export(workdir, file)
    else:
        done = jaxmark("--mode=export", f"--checkpoint={workdir}", f"--output={file}")
        assert done.returncode == 0, done.stderr
        assert f"{file}: " in done.stdout and "19 landmarks" in done.stdout
    model = load_model(workdir)
    voxels = np.random.default_rng(0).random((36, 36, 28)).astype(np.float32)
    # Some rows lie outside.
    place = model.frame.grid_to_common.copy()
    place[:3, 3] += 3 * model.frame.spacing_mm
    write_scan(scan, voxels, place)
    expected = model.predict(scan).positions_mm
    for script in (SCRIPT, SHORT) if suffix == ".jax.zip" else (SCRIPT,):
        names, found = landmarks_by(script, file, scan)
        assert names == list(model.landmarks)
        # Printed to a thousandth.
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_short_script_places_the_grid_in_the_middle_of_a_turned_and_finer_scan(tmp_path):
    frame = dataclasses.replace(FRAME, register="middle", shape=(16, 16, 16))
    centred = frame.grid_to_common.copy()
    centred[:3, 3] = -7.5 * frame.spacing_mm
    frame = dataclasses.replace(frame, grid_to_common=centred)
    task = dataclasses.replace(TASK, crop=(16, 16, 16), margin=(0, 0, 0))
    model, methods = model_of(METHODS[0], frame, task)
    file, scan = tmp_path / "m.jax.zip", tmp_path / "scan.nii.gz"
    exported.write(model, methods, file, tmp_path)
    place = np.array([[0.0, 0.4, 0, 9], [-0.5, 0, 0, 8], [0, 0, 0.6, -7], [0, 0, 0, 1]])
    i, j, k = np.indices((60, 50, 40))
    voxels = 100 * np.exp(-((i - 30) ** 2 + (j - 20) ** 2 + (k - 25) ** 2) / 90) + i / 5
    write_scan(scan, voxels.astype(np.float32), place)
    names, found = landmarks_by(SHORT, file, scan)
    assert names == list(SCHEME.landmarks)
    prepared = frame.prepare(read_scan(scan))
    (expected,) = model.predictor(model.variables, [prepared.volume("v")])
    at = np.asarray(expected.prediction.positions_ijk["subvoxel"], float)
    # SimpleITK's Gaussian is not quite SciPy's.
    np.testing.assert_allclose(found, apply_affine(prepared.ijk_to_lps, at), atol=0.01)


def test_what_is_promised_goes_with_the_file(tmp_path):
    by_spread = SpreadRadius(np.array([3.0, np.inf]), 2.0)
    presence = PresenceModel(np.array([-1.0, 0.5]), 0.25)
    promises = Calibration(0.9, np.array([4.0, np.inf]), presence, by_spread=by_spread)
    model, methods = model_of(METHODS[0], calibration=promises)
    exported.write(model, methods, tmp_path / "m.jax.zip", tmp_path)
    known = json.loads(np.load(tmp_path / "m.jax.zip")["model.json"])["calibration"]
    assert known["coverage"] == 0.9 and known["radius_mm"] == [4.0, None]
    by, spread = known["by_spread"], 5.0
    growth = ((by["offset"] + spread / by["usual_mm"]) / (by["offset"] + 1)) ** by["power"]
    np.testing.assert_allclose(by["factor_mm"][0] * growth, promises.radii_mm([spread, 1])[0])
    assert by["factor_mm"][1] is None
    logits = np.array(known["presence"]["intercept"]) + known["presence"]["slope"] * 2.0
    expected = promises.presence(np.array([2.0, 2.0]))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected)


def test_a_template_goes_with_a_model_that_registers(tmp_path):
    template = scan_of(0)
    write_scan(tmp_path / "template.mha", template.voxels, template.ijk_to_lps)
    shared = np.diag([1.0, 1.0, 1.0, 1.0])
    shared[:3, 3] = 5.0, 6.0, 7.0
    frame = dataclasses.replace(
        FRAME, register="rigid", template=template, common_to_template=shared
    )
    model, methods = model_of(METHODS[0], frame, preparation=tmp_path)
    file = tmp_path / "m.jax.zip"
    exported.write(model, methods, file, tmp_path)
    archive = np.load(file)
    assert archive["template.mha"] == (tmp_path / "template.mha").read_bytes()
    grid = json.loads(archive["model.json"])["grid"]
    assert grid["placed_by"] == "registration" and grid["registration"]["kind"] == "rigid"
    np.testing.assert_allclose(grid["ijk_to_lps"], shared @ FRAME.grid_to_common)
    refused(
        lambda: exported.write(model, methods, tmp_path / "m.onnx", tmp_path),
        "--output: ",
        "registered to its template",
        "use .jax.zip",
    )
    assert not (tmp_path / "m.onnx").exists()


def test_what_can_not_be_exported_is_one_line(tmp_path, monkeypatch):
    model, methods = model_of(METHODS[0])
    for name in ("m.zip", "m.jax", "onnx"):
        refused(
            lambda name=name: exported.write(model, methods, tmp_path / name, tmp_path),
            f"--output: {tmp_path / name} ends neither in .onnx nor in .jax.zip",
        )
    twice = CoarseToFine(factor=2, widths=(4, 8), crop=(8, 8, 8), fine_widths=(4, 8))
    task = dataclasses.replace(TASK, crop=(32, 16, 16), margin=(0, 0, 0))
    refused(
        lambda: exported.write(*model_of(twice, task=task), tmp_path / "m.onnx", tmp_path),
        f"{tmp_path}: holds a model of CoarseToFine that can't be exported: it has ",
        "--mode=pack",
    )
    gan = CardiacGAN(widths=(8, 16), filters=1, discriminator_widths=(4, 8, 8), window=5)
    task = dataclasses.replace(TASK, crop=(32, 32, 1), margin=(0, 0, 0), shape_mm=None)
    picture = dataclasses.replace(FRAME, shape=(32, 32, 1))
    refused(
        lambda: exported.write(*model_of(gan, picture, task), tmp_path / "m.onnx", tmp_path),
        "a model of CardiacGAN",
        "only models of volumes",
    )
    monkeypatch.setattr(exported.importlib.util, "find_spec", lambda name: None)
    refused(
        lambda: exported.write(model, methods, tmp_path / "m.onnx", tmp_path),
        "pip install onnx",
    )
    assert list(tmp_path.iterdir()) == []


def test_export_asks_for_a_file(workdir):
    done = jaxmark("--mode=export", f"--checkpoint={workdir}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    print(line)
    assert line.startswith("error: --output: is required with --mode=export")


def test_of_several_models_one_is_exported(tmp_path: Path) -> None:
    (tmp_path / "folds" / "0").mkdir(parents=True)
    (tmp_path / "folds" / "0" / "config.json").write_text("{}")
    problem = f"holds several models; export one of them: {tmp_path / 'folds' / '0'}"
    refused(lambda: export(tmp_path, tmp_path / "a.onnx"), tmp_path, problem)
