"""The example of docs/code.md: it finds what there is to find, and fits an experiment."""

import importlib.util
import sys

import jax
import pytest
from documents import HOME, blocks
from spots import TASK, batch, error_mm, predict

from jaxmark.config import validate
from jaxmark.system.errors import InputError


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Both blocks of the page as one module."""
    file = tmp_path / "integral.py"
    texts = [text for text, _ in blocks(HOME / "docs" / "code.md", "python")]
    file.write_text("\n".join(texts), "utf-8")
    spec = importlib.util.spec_from_file_location("integral", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "integral", module)
    spec.loader.exec_module(module)
    return module


def test_the_example_learns(example):
    method = example.IntegralRegression(widths=(8, 16), learning_rate=1e-2).build(TASK)
    state, data = method.init(jax.random.key(0)), batch()
    step = jax.jit(method.phases[0].step)

    def error(state):
        return float(error_mm(predict(method, state, data.image), data.landmarks_ijk).mean())

    before = error(state)
    for i in range(200):
        state, metrics = step(state, data, jax.random.key(i))
    assert error(state) < 1.5 < before
    assert set(metrics) == set(example.IntegralRegression.metrics)


def test_the_example_is_an_experiment_with_presets_and_bounds(example):
    experiment = validate(example.get_config("tiny"))
    assert (experiment.name, experiment.method.steps) == ("integral_tiny", 6)
    experiment.method.learning_rate = -1.0
    with pytest.raises(InputError, match="learning_rate"):
        validate(experiment)
    with pytest.raises(InputError, match="16"):
        example.IntegralRegression(widths=(4,) * 8).build(TASK)
