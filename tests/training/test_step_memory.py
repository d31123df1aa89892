"""What a step needs, before it is computed; what is left where it needs more than there is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.config import Augment, Data, Experiment, Train, check_same, to_json
from jaxmark.core.anatomy import scheme_of
from jaxmark.data.cases import PreparedCase, load_case, read_case, save_case
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.coarse_to_fine import CoarseToFine
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import Batch, Method, Phase, Stage, State, Task
from jaxmark.system import memory
from jaxmark.system.devices import data_mesh, put_batch
from jaxmark.system.errors import InputError
from jaxmark.system.memory import bytes_at_once
from jaxmark.training.checkpoints import Checkpoints
from jaxmark.training.loop import train
from jaxmark.training.memory import case_shapes, needs_less, step_bytes
from jaxmark.training.sharding import sharded_init, sharded_step

NAMES, SIDE = ("a", "b"), 12


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case") / "c"
    points, known = np.full((2, 3), 5.0), np.ones(2, bool)
    save_case(
        PreparedCase("c", folder, np.eye(4), points, known, ~known), np.ones([SIDE] * 3), folder
    )
    return load_case(folder)


@pytest.fixture
def experiment():
    return Experiment(
        method=HeatmapRegression(steps=2, widths=(4, 8), head=4),
        data=Data(crop=(8, 8, 8), margin=2, spacing_mm=(1.0, 1.0, 1.0)),
        augment=Augment(translation_voxels=2),
        train=Train(batch=8, log_every=10, validate_every=10),
    )


@pytest.fixture
def network(experiment):
    """The method of the experiment."""
    data = experiment.data
    task = Task(scheme_of(NAMES), data.crop, data.margins, data.spacing_mm, experiment.augment)
    return experiment.method.build(task)


@pytest.fixture
def method():
    """One that compiles in no time: its weight becomes the images' mean."""

    def init(key):
        params = {"network": {"weight": jnp.ones(())}}
        return State(jnp.zeros((), jnp.int32), params, optimizer={"network": jnp.zeros(())})

    def step(state, batch, key):
        mean = jnp.sort(batch.image.ravel()).mean(dtype=jnp.float32)
        params = {"network": {"weight": mean}}
        return dataclasses.replace(state, step=state.step + 1, params=params), {"loss": mean}

    def run(variables, arrays):
        return variables.params["network"]["weight"] * arrays["image"].sum((1, 2, 3))

    return Method(init=init, phases=(Phase("small", 2, step),), stages=(Stage(run),))


@pytest.fixture
def little_memory(monkeypatch):
    """A tenth of a gigabyte for each of two devices."""
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2 * 10**8)


def exploding(image):
    """Half of so many sorted numbers: 4096 for a batch of 4, over a petabyte of them for 8."""
    count = 2 ** (3 * len(image) ** 2 // 4)
    return jnp.sort(jnp.arange(count, dtype=jnp.float32) * image.sum(dtype=jnp.float32))[::2]


def continued(method, experiment, case, workdir):
    train(
        method,
        experiment,
        cases=[case],
        validation=[],
        landmarks=NAMES,
        workdir=workdir,
        mesh=data_mesh(),
    )


def test_a_step_s_bytes_are_those_of_the_step_that_training_compiles(network, case):
    (phase,), mesh, key = network.phases, data_mesh(), jax.random.key(0)
    of_case = read_case(case, np.random.default_rng(0))
    host = {name: np.stack([array] * 4) for name, array in of_case.items()}
    state, batch = sharded_init(network.init, mesh)(key), Batch(**put_batch(mesh, host))
    compiled = sharded_step(phase.step, mesh).lower(state, batch, key).compile()
    shapes = case_shapes(phase, case)
    assert step_bytes(network, phase, shapes, 4, mesh) == bytes_at_once(compiled)


def test_a_step_needs_more_for_more_cases(method, case):
    (phase,), mesh = method.phases, data_mesh()
    shapes = case_shapes(phase, case)
    two, four, eight = (step_bytes(method, phase, shapes, n, mesh) for n in (2, 4, 8))
    # The images of half of the batch lie on each of two devices, in float16.
    assert two > 2 * SIDE**3 and two < four < eight


def with_a_large_phase(method):
    """The same with a second phase, whose steps hold `exploding` numbers."""

    def step(state, batch, key):
        loss = exploding(batch.image).mean()
        return dataclasses.replace(state, step=state.step + 1), {"loss": loss}

    (phase,) = method.phases
    large = dataclasses.replace(phase, name="large", step=step)
    return dataclasses.replace(method, phases=(phase, large))


def test_what_was_trained_stays_and_goes_on_with_the_batch_that_fits(
    method, experiment, case, tmp_path, little_memory, capsys
):
    method = with_a_large_phase(method)
    with pytest.raises(InputError) as caught:
        continued(method, experiment, case, tmp_path)
    problem = "the device has 0.1 GB; 4 fits (--config.train.batch=4)"
    assert str(caught.value).startswith("config.train.batch: a step needs 1,")
    assert problem in str(caught.value)
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)
    assert "it may fail" in capsys.readouterr().err
    assert Checkpoints(tmp_path).steps() == [2]
    smaller = dataclasses.replace(experiment.train, batch=4)
    continued(method, dataclasses.replace(experiment, train=smaller), case, tmp_path)
    assert "continuing at step 2 of 4" in capsys.readouterr().out
    assert Checkpoints(tmp_path).steps() == [2, 4]


def test_a_batch_whose_arrays_do_not_fit_is_refused_before_it_is_read(
    method, experiment, case, tmp_path, little_memory
):
    read = []

    def counted(case, rng):
        read.append(case.name)
        return read_case(case, rng)

    (phase,) = method.phases
    method = dataclasses.replace(method, phases=(dataclasses.replace(phase, read=counted),))
    huge = dataclasses.replace(experiment.train, batch=10**9)
    problem = r"config\.train\.batch: the arrays of 1,000,000,000 cases are .*\d fits \(--config"
    with pytest.raises(InputError, match=problem):
        continued(method, dataclasses.replace(experiment, train=huge), case, tmp_path)
    assert len(read) == 1


def test_a_batch_too_large_for_prediction_is_refused(method, case, little_memory):
    variables = method.init(jax.random.key(0)).variables
    problem = r"config\.predict\.batch: the arrays of .* fits \(--config\.predict\.batch=\d+\)"
    with pytest.raises(InputError, match=problem):
        next(Predictor(method, 10**9, data_mesh())(variables, [case.volume]))


def test_prediction_that_runs_out_of_memory_names_the_batch_that_fits(method, case, little_memory):
    def run(variables, arrays):
        return exploding(arrays["image"])[:8]

    (stage,) = method.stages
    large = dataclasses.replace(method, stages=(dataclasses.replace(stage, run=run),))
    variables = method.init(jax.random.key(0)).variables
    problem = r"a prediction needs .* 4 fits \(--config\.predict\.batch=4\)"
    with pytest.raises(InputError, match=problem):
        next(Predictor(large, 8, data_mesh())(variables, [case.volume]))


@pytest.mark.parametrize(
    ("method", "field"),
    [
        (Cascade(factor=2, patch=16, reach_mm=4.0, refine_widths=(4, 8)), "refine_batch"),
        (CoarseToFine(widths=(4, 8), factor=2), "fine_batch"),
    ],
)
def test_a_phase_s_own_batch_is_a_setting_with_which_a_run_may_go_on(method, field):
    task = Task(
        scheme_of(NAMES),
        (32, 32, 32),
        (0, 0, 0),
        (1.0, 1.0, 1.0),
        Augment(0),
        shape_mm=np.array([[0.0, 0, 0], [5, 5, 5]]),
    )
    fields = [phase.batch_field for phase in method.build(task).phases]
    assert fields == ["config.train.batch", f"config.method.{field}"]
    stored = to_json(Experiment(method=method))
    other = dataclasses.replace(method, **{field: getattr(method, field) + 1})
    check_same(stored, Experiment(method=other), "config.json")


def test_settings_that_need_less_are_those_of_the_method():
    line = needs_less(HeatmapRegression(), "gpu")
    assert line.startswith("config.method.remat=True, ") and "config.method.widths" in line
    assert "remat" not in needs_less(HeatmapRegression(remat=True), "gpu")
    # There XLA merges what is computed again with the first time.
    assert "remat" not in needs_less(HeatmapRegression(), "cpu")
    assert "remat" not in needs_less(Cascade(), "gpu")
    assert "config.method.patch" in needs_less(Cascade(), "gpu")
