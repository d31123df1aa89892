"""Training on drawn cases: stopped runs continue to the same bits, and other cases are refused."""

import dataclasses

import jax
import numpy as np
import pytest
from test_loop import build, cases, experiment, params_of, run  # noqa: F401

from experiments import cow
from jaxmark.config import Stream, Train, validate
from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.system.errors import InputError
from jaxmark.system.interrupts import Interrupted
from jaxmark.training.checkpoints import Checkpoints
from jaxmark.training.records import METRICS
from jaxmark.workflow import prepare

SETTINGS = experiment(
    phantom=CirclePhantom(),
    stream=Stream(on=True, reuse=2, window=2),
    train=Train(batch=2, log_every=4, validate_every=3),
)


def draw(number):
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 2, (12, 12, 8, 1), np.uint8),
        "landmarks_ijk": rng.uniform(3, 6, (2, 3)).astype(np.float32),
        "present": np.ones(2, bool),
        "absent": np.zeros(2, bool),
    }


def streamed(draw_case=draw):
    method = build(SETTINGS)
    (phase,) = method.phases
    return dataclasses.replace(method, phases=(dataclasses.replace(phase, draw=draw_case),))


def test_a_run_that_is_stopped_continues_to_the_same_bits(cases, tmp_path, monkeypatch):  # noqa: F811
    run(SETTINGS, cases, tmp_path / "whole", method=streamed())
    import jaxmark.training.loop as loop

    class StopsAt4:
        def __init__(self, stops):
            self._stops = stops

        def __getattr__(self, name):
            return getattr(self._stops, name)

        def after(self, step):
            return "SIGTERM" if step == 4 else self._stops.after(step)

    whole_stops = loop.stops
    with monkeypatch.context() as patch:

        class Stopping:
            def __enter__(self):
                self._inner = whole_stops()
                return StopsAt4(self._inner.__enter__())

            def __exit__(self, *error):
                return self._inner.__exit__(*error)

        patch.setattr(loop, "stops", Stopping)
        with pytest.raises(Interrupted):
            run(SETTINGS, cases, tmp_path / "stopped", method=streamed())
    assert Checkpoints(tmp_path / "stopped").steps() == [3, 4]
    run(SETTINGS, cases, tmp_path / "stopped", method=streamed())
    ends = [params_of(SETTINGS, tmp_path / name) for name in ("whole", "stopped")]
    assert ends[0][0] == ends[1][0] == 6
    for x, y in zip(*(jax.tree.leaves(end[1]) for end in ends), strict=True):
        np.testing.assert_array_equal(x, y)
    logs = [(tmp_path / name / METRICS).read_bytes() for name in ("whole", "stopped")]
    assert logs[0] == logs[1]


def test_the_training_cases_are_not_seen(cases, tmp_path):  # noqa: F811
    run(SETTINGS, cases, tmp_path / "few", method=streamed())
    run(SETTINGS, [*cases[2:4], *cases[:2], *cases[4:]], tmp_path / "others", method=streamed())
    ends = [params_of(SETTINGS, tmp_path / name)[1] for name in ("few", "others")]
    for x, y in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(x, y)


def test_cases_of_another_recipe_or_other_settings_are_refused(cases, tmp_path, monkeypatch):  # noqa: F811
    run(SETTINGS, cases, tmp_path, method=streamed())
    more = dataclasses.replace(SETTINGS, stream=Stream(on=True, reuse=3, window=2))
    with pytest.raises(InputError, match=r"config\.stream\.reuse = 2, not 3"):
        run(more, cases, tmp_path, method=streamed())
    monkeypatch.setattr(CirclePhantom, "label_recipe_version", -1)
    with pytest.raises(InputError, match="is of other drawn cases"):
        run(SETTINGS, cases, tmp_path, method=streamed())


def nowhere(number):
    return {**draw(number), "landmarks_ijk": np.full((2, 3), np.nan, np.float32)}


def test_a_loss_that_is_not_finite_names_the_numbers_of_the_drawn(cases, tmp_path):  # noqa: F811
    with pytest.raises(FloatingPointError, match=r"at step 1 \(cases \d+ drawn, \d+ drawn\)"):
        run(SETTINGS, cases, tmp_path, method=streamed(nowhere))


def test_phases_that_draw_nothing_get_cases_of_the_prepared_shape(tmp_path):
    wanted = cow.get_config("tiny")
    wanted.stream.on = wanted.augment.appearance.drawn = True
    wanted.data.cache = str(tmp_path / "cache")
    prepared = prepare(wanted, tmp_path / "work")
    case = prepared.prepared.split("train")[0]
    for phase in prepared.method.phases:
        assert phase.draw(3)["image"].shape == (*case.image().shape, 1)
    # Whoever is drawn has no scan in the cohort.
    drawn = prepared.method.phases[0].draw(0)
    assert not np.allclose(drawn["landmarks_ijk"], np.nan_to_num(case.landmarks_ijk), atol=0.5)


def test_a_stream_needs_a_phantom_that_draws_and_the_cohort_s_landmarks(tmp_path):
    with pytest.raises(InputError, match=r"config\.stream\.on: needs config\.phantom"):
        validate(experiment(stream=Stream(on=True)))
    wanted = cow.get_config("tiny")
    wanted.stream.on = wanted.augment.appearance.drawn = True
    CirclePhantom(**vars(wanted.phantom)).write(tmp_path / "cohort", workers=1)
    wanted.data.root, wanted.data.cache = str(tmp_path / "cohort"), str(tmp_path / "cache")
    wanted.data.landmarks = ("BA tip", "C4/C5 R")
    with pytest.raises(InputError, match=r"config\.stream\.on: draws people with other landmarks"):
        prepare(wanted, tmp_path / "work")
