"""The loop for real: Grain, Orbax, two devices; stopped runs continue to the same bits."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from jaxmark.config import Augment, Data, Experiment, Predict, Train, to_json
from jaxmark.core.anatomy import scheme_of
from jaxmark.data.cases import PreparedCase, load_case, save_case
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import LandmarkSets, Task
from jaxmark.system.devices import data_mesh
from jaxmark.system.errors import InputError
from jaxmark.training.checkpoints import Checkpoints, load_variables
from jaxmark.training.loop import train
from jaxmark.training.provenance import fingerprint
from jaxmark.training.records import METRICS, read_records

NAMES = ("a", "b")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    found = []
    for i in range(6):
        points = rng.uniform(4, 8, (2, 3))
        affine = np.diag([1.5, 1.5, 2.0, 1.0])
        affine[:3, 3] = rng.normal(0, 30, 3)
        world = points * [1.5, 1.5, 2.0] + affine[:3, 3]
        case = PreparedCase(
            f"c{i}", folder / f"c{i}", affine, world, np.ones(2, bool), np.zeros(2, bool)
        )
        save_case(case, rng.normal(size=(12, 12, 8)), folder)
        found.append(load_case(case.folder))
    return found


def experiment(**changes):
    settings = {
        "method": HeatmapRegression(steps=6, widths=(4, 8), head=4, learning_rate=1e-3),
        "data": Data(crop=(8, 8, 4), margin=2, spacing_mm=(1.5, 1.5, 2.0)),
        "augment": Augment(translation_voxels=2),
        "train": Train(batch=2, log_every=1, validate_every=2),
        "predict": Predict(batch=2),
        **changes,
    }
    return Experiment(**settings)


def build(settings):
    data = settings.data
    task = Task(scheme_of(NAMES), data.crop, data.margins, data.spacing_mm, settings.augment)
    return settings.method.build(task)


def run(settings, cases, workdir, mesh=None, method=None):
    train(
        method or build(settings),
        settings,
        cases=cases[:4],
        validation=cases[4:],
        landmarks=NAMES,
        workdir=workdir,
        mesh=mesh or data_mesh(),
    )


def params_of(settings, workdir, mesh=None):
    return load_variables(workdir, "last", build(settings).init, mesh or data_mesh())


def test_validations_are_at_their_steps_and_at_the_end_of_a_phase(cases, tmp_path):
    small = {"widths": (4, 8), "head": 4, "discriminator_widths": (4, 8), "discriminator_hidden": 4}
    whole = experiment(method=Adversarial(steps=3, adversarial_steps=3, real="images", **small))
    run(whole, cases, tmp_path)
    records = read_records(tmp_path / METRICS)
    assert [r["step"] for r in records if r["kind"] == "validation"] == [2, 3, 4, 6]
    assert params_of(whole, tmp_path)[0] == 6


def test_two_devices_train_what_one_trains(cases, tmp_path):
    settings = experiment()
    both = data_mesh()
    one = jax.make_mesh(
        (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
    )
    assert both.size == 2
    run(settings, cases, tmp_path / "both", both)
    run(settings, cases, tmp_path / "one", one)
    _, a = params_of(settings, tmp_path / "both", one)  # restored onto another number of devices
    _, b = params_of(settings, tmp_path / "one", one)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        # Sums are taken in another order, and Adam divides by roots of small numbers.
        np.testing.assert_allclose(x, y, atol=2e-4)
    # What two began, one may end.
    shutil.rmtree(tmp_path / "both" / "checkpoints" / "6")
    run(settings, cases, tmp_path / "both", one)
    step, c = params_of(settings, tmp_path / "both", one)
    assert step == 6
    for x, y in zip(jax.tree.leaves(c), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4)


def test_the_best_checkpoint_outlives_newer_ones(cases, tmp_path, monkeypatch):
    import jaxmark.training.loop as loop

    errors = iter([5.0, 1.0, 3.0, 4.0, 2.0])
    monkeypatch.setattr(loop, "validate", lambda *args: next(errors))
    settings = experiment(
        method=HeatmapRegression(steps=5, widths=(4, 8), head=4),
        train=Train(batch=2, validate_every=1, keep_checkpoints=1),
    )
    run(settings, cases, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 5] and checkpoints.best_first() == [2, 5]
    assert checkpoints.errors_mm() == {2: 1.0, 5: 2.0}
    assert checkpoints.meta(2)["config"] == to_json(settings)


def test_predictions_come_in_order_and_the_last_batch_is_filled(cases, tmp_path):
    method = build(experiment())
    variables, volumes = method.init(jax.random.key(0)).variables, [case.volume for case in cases]
    found = list(Predictor(method, 4, data_mesh())(variables, volumes))
    assert [result.name for result in found] == [case.name for case in cases]
    alone = list(Predictor(method, 1, data_mesh())(variables, volumes[5:]))
    for decoder in ("argmax", "subvoxel"):
        np.testing.assert_allclose(
            found[5].landmarks_mm(decoder), alone[0].landmarks_mm(decoder), atol=1e-3
        )
        # Inside of the crop, and in millimetres of the scan.
        ijk = found[5].prediction.positions_ijk[decoder]
        assert (ijk >= 2).all() and (ijk <= np.array([9, 9, 5])).all()
        mm = cases[5].ijk_to_lps[:3, :3] @ ijk[0] + cases[5].ijk_to_lps[:3, 3]
        np.testing.assert_allclose(found[5].landmarks_mm(decoder)[0], mm)


def test_another_method_or_other_landmarks_in_a_work_dir_are_refused(cases, tmp_path):
    run(experiment(), cases, tmp_path)
    wider = experiment(method=HeatmapRegression(steps=6, widths=(4, 16), head=4))
    with pytest.raises(InputError, match=r"config\.method\.widths = \[4, 8\], not \[4, 16\]"):
        run(wider, cases, tmp_path)


def test_a_batch_that_does_not_divide_is_refused(cases, tmp_path):
    with pytest.raises(InputError, match="config.train.batch: 3 does not divide over 2"):
        run(experiment(train=Train(batch=3)), cases, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was(cases, tmp_path):
    method = HeatmapRegression(steps=6, widths=(4, 8), head=4, learning_rate=1e38)
    # The first step is taken from sound parameters, the second one is not; it is found in the log's
    # line of the third.
    settings = experiment(method=method, train=Train(batch=2, log_every=3, validate_every=6))
    with pytest.raises(FloatingPointError) as caught:
        run(settings, cases, tmp_path)
    assert re.fullmatch(
        r"gradient_norm, loss not finite in phase pretrain at step 2 \(cases c\d, c\d\)",
        str(caught.value),
    )
    assert not Checkpoints(tmp_path).steps()


def test_parameters_that_are_not_finite_are_not_saved(cases, tmp_path):
    settings = experiment(train=Train(batch=2, validate_every=2))
    method = build(settings)
    phase = method.phases[0]

    def step(state, batch, key):
        params = jax.tree.map(lambda x: jax.numpy.where(state.step < 3, x, np.nan), state.params)
        taken = dataclasses.replace(state, step=state.step + 1, params=params)
        return taken, {"loss": jax.numpy.zeros(())}

    method = dataclasses.replace(method, phases=(dataclasses.replace(phase, step=step),))
    problem = r"parameters generator/.+ not finite in phase pretrain after step 4"
    with pytest.raises(FloatingPointError, match=problem):
        run(settings, cases, tmp_path, method=method)
    assert Checkpoints(tmp_path).steps() == [2]


def test_other_data_under_the_same_settings_is_refused(cases, tmp_path):
    run(experiment(), cases, tmp_path)
    moved = dataclasses.replace(cases[1], landmarks_mm=cases[1].landmarks_mm + 0.01)
    with pytest.raises(InputError, match="is of other training cases than those that are there"):
        run(experiment(), [cases[0], moved, *cases[2:]], tmp_path)
    # Rounding, as of a registration on another processor, is no other data.
    same = dataclasses.replace(cases[1], landmarks_mm=cases[1].landmarks_mm + 1e-9)
    run(experiment(), [cases[0], same, *cases[2:]], tmp_path)


def test_a_fingerprint_is_of_names_landmarks_states_and_unpaired_sets(cases):
    sets = LandmarkSets(np.zeros((2, 2, 3), np.float32), np.ones((2, 2), bool))
    others = LandmarkSets(sets.landmarks_ijk + 1, sets.present)
    fewer = LandmarkSets(sets.landmarks_ijk, np.array([[True, False], [True, True]]))
    found = [fingerprint(cases, s)["unpaired landmarks"] for s in (None, sets, others, fewer)]
    assert len(set(found)) == 4
    renamed = [dataclasses.replace(cases[0], name="d"), *cases[1:]]
    absent = [dataclasses.replace(cases[0], absent=np.ones(2, bool)), *cases[1:]]
    found = [fingerprint(c, None)["training cases"] for c in (cases, cases[1:], renamed, absent)]
    assert len(set(found)) == 4


def test_a_finished_run_is_left_alone(cases, tmp_path):
    run(experiment(), cases, tmp_path)
    log = (tmp_path / "logs" / "metrics.jsonl").read_bytes()
    run(experiment(), cases, tmp_path)
    assert (tmp_path / "logs" / "metrics.jsonl").read_bytes() == log


def test_a_cut_last_line_of_the_log_is_dropped_on_resume(cases, tmp_path):
    short = experiment()
    run(short, cases, tmp_path)
    path = tmp_path / "logs" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "train", "st')
    assert len(read_records(path)) == len(whole.splitlines())
    path.write_text('{"kind": "train", "st\n' + whole)
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 1"):
        read_records(path)
    assert json.loads(whole.splitlines()[0])["step"] == 1


def test_settings_of_the_run_may_change_between_starts(cases, tmp_path):
    run(experiment(), cases, tmp_path)
    # How often it is validated is no part of what is trained.
    run(dataclasses.replace(experiment(), train=Train(batch=2, validate_every=3)), cases, tmp_path)


def test_the_log_holds_means_and_an_alarm_is_told_once(cases, tmp_path, capsys):
    settings = experiment(train=Train(batch=2, log_every=3, validate_every=6))
    method = build(settings)
    seen = []

    def alarm(records):
        seen.append([record["loss"] for record in records])
        return "too small" if records[-1]["loss"] < 4 else None

    phase = method.phases[0]

    def step(state, batch, key):
        value = jax.numpy.array([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])[state.step]
        return dataclasses.replace(state, step=state.step + 1), {"loss": value}

    method = dataclasses.replace(
        method, phases=(dataclasses.replace(phase, step=step, alarm=alarm),)
    )
    train(
        method,
        settings,
        cases=cases[:4],
        validation=[],
        landmarks=NAMES,
        workdir=tmp_path,
        mesh=data_mesh(),
    )
    records = read_records(tmp_path / "logs" / "metrics.jsonl")
    assert [r["loss"] for r in records if r["kind"] == "train"] == [3.0, 5.0]
    assert [r for r in records if r["kind"] == "warning"] == [
        {"kind": "warning", "phase": "pretrain", "step": 3, "message": "too small"}
    ]
    assert seen == [[3.0], [3.0, 5.0]]
    assert "warning: step 3: too small" in capsys.readouterr().out
