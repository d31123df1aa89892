"""Networks computed by OpenVINO: the same answers, of every method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Augment
from jaxmark.core.anatomy import Scheme, Segment, scheme_of
from jaxmark.inference import engines
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.cardiac_gan import CardiacGAN
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.coarse_to_fine import CoarseToFine
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import Prediction, Task
from jaxmark.methods.multitask import Multitask
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import SpatialConfiguration

pytest.importorskip("openvino", reason="pip install openvino")

CROP = (32, 16, 16)
TASK = Task(
    scheme=scheme_of(("a R", "a L")),
    crop=CROP,
    margin=(0, 0, 0),
    spacing_mm=(1.0, 1.0, 1.0),
    augment=Augment(),
    shape_mm=np.array([[-4.0, 0, 0], [4, 0, 0]]),
)
METHODS = (
    HeatmapRegression(widths=(4, 8), head=4),
    HeatmapRegression(widths=(8, 16, 16), loss="cross_entropy", coordinates=True),
    Adversarial(widths=(4, 8), head=4, discriminator_widths=(4, 8)),
    RegressionClassification(stem=4, widths=(8, 8), blocks=(1, 1), head=4, local_widths=(4, 8)),
    SpatialConfiguration(filters=4, levels=2, downsample=4),
    SpatialConfiguration(recipe="later", filters=4, levels=1, downsample=4, spatial_levels=1),
    Multitask(widths=(4, 8), head=4),
    Cascade(factor=2, widths=(4, 8), patch=8, reach_mm=3.0, refine_widths=(4, 4), hidden=8),
    CardiacGAN(widths=(8, 16), filters=1, discriminator_widths=(4, 8, 8), window=5),
    CoarseToFine(factor=2, widths=(4, 8), crop=(8, 8, 8), fine_widths=(4, 8)),
)


SEGMENTS = (Segment("v", ("a R",)), Segment("w", ("a R", "a L"), True))
SEGMENTED = Scheme("s", ("a R", "a L"), (), SEGMENTS)
TASKS = {
    Multitask: dataclasses.replace(TASK, scheme=SEGMENTED),
    CardiacGAN: dataclasses.replace(TASK, crop=(32, 32, 1), shape_mm=None),
}


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: type(s).__name__)
def test_openvino_says_what_xla_says(settings):
    task = TASKS.get(type(settings), TASK)
    method = settings.build(task)
    variables = method.init(jax.random.key(0)).variables
    image = np.random.default_rng(0).uniform(size=(2, *task.crop, 1)).astype(np.float32)
    coarsely = isinstance(settings, (Cascade, CoarseToFine))
    arrays = {"image": image[:, ::2, ::2, ::2] if coarsely else image}
    run = method.stages[0].run
    parts = engines.partition(run, variables, arrays, "f32")
    assert parts is not None
    for scaled in (arrays, {"image": 0.5 * arrays["image"] + 0.1 * arrays["image"] ** 2}):
        expected, found = jax.jit(run)(variables, scaled), parts(scaled)
        for name, ijk in expected.positions_ijk.items():
            np.testing.assert_allclose(found.positions_ijk[name], ijk, atol=0.01)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-3, atol=1e-5)


def test_later_looks_at_crops_are_computed_by_openvino_too():
    settings = dataclasses.replace(METHODS[-1], mirror=True, looks=2, usual_mm=6.0)
    method = settings.build(TASK)
    variables = method.init(jax.random.key(0)).variables
    variables = variables.replace(statistics={"refine": jnp.ones(())})
    rng = np.random.default_rng(0)
    points = {name: np.zeros((1, 3, 2, 3), np.float32) for name in CoarseToFine.decoders}
    known = np.zeros((1, 3, 2), np.float32)
    arrays = {
        "image": rng.uniform(size=(1, 3, 8, 8, 8, 1)).astype(np.float32),
        "to_volume": np.tile(np.eye(4, dtype=np.float32), (1, 3, 1, 1)),
        "earlier": Prediction(points, known, known, spread_mm=known),
    }
    run = method.stages[-1].run
    parts = engines.partition(run, variables, arrays, "f32")
    expected, found = jax.jit(run)(variables, arrays), parts(arrays)
    moved = found.positions_ijk["subvoxel"]
    np.testing.assert_allclose(moved, expected.positions_ijk["subvoxel"], atol=0.01)
    assert moved.shape == (1, 3, 2, 3)


def test_a_network_with_an_operation_that_openvino_lacks_stays_with_xla(monkeypatch, capsys):
    from jaxmark.inference import translation

    monkeypatch.delitem(translation.RULES, "conv_general_dilated")
    method = METHODS[0].build(TASK)
    variables = method.init(jax.random.key(0)).variables
    (stage,) = method.stages
    arrays = {"image": np.ones((1, *CROP, 1), np.float32)}
    run = engines.EngineRun(stage.run, jax.jit(stage.run), engines.OPENVINO)
    expected = jax.jit(stage.run)(variables, arrays)
    np.testing.assert_array_equal(run(variables, arrays).score, expected.score)
    assert "OpenVINO has nothing for conv_general_dilated" in capsys.readouterr().out


def test_what_has_no_network_stays_with_xla():
    def plain(variables, arrays):
        sums = arrays["image"].sum((1, 2, 3))
        return Prediction({"a": sums[..., None]}, sums, sums)

    image = {"image": np.ones((1, 4, 4, 4, 1), np.float32)}
    assert engines.partition(plain, None, image, "f32") is None
    run = engines.EngineRun(plain, plain, engines.FASTEST)
    assert run(None, image).score == 64


def test_the_fastest_is_named(capsys):
    method = METHODS[0].build(TASK)
    variables = method.init(jax.random.key(0)).variables
    (stage,) = method.stages
    run = engines.EngineRun(stage.run, jax.jit(stage.run), engines.FASTEST)
    arrays = {"image": np.ones((1, *CROP, 1), np.float32)}
    first = run(variables, arrays)
    line = capsys.readouterr().out
    assert "networks are computed by " in line and "xla" in line and "openvino" in line
    np.testing.assert_array_equal(run(variables, arrays).score, first.score)
    assert capsys.readouterr().out == ""


def test_engines_that_cannot_be_used_are_refused(monkeypatch):
    refused(lambda: engines.check_engine("openvino", "gpu", 1), "config.predict.engine", "CPU")
    refused(lambda: engines.check_engine("openvino", "cpu", 2), "config.predict.engine", "device")
    engines.check_engine("xla", "gpu", 8)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    refused(lambda: engines.check_engine("fastest", "cpu", 1), "pip install openvino")
