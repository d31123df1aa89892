"""Network, voxels and steps that fit into the device and the time; no step is compiled here."""

import numpy as np
import pytest
from conftest import refused
from small_cohorts import as_placed, survey_of

from jaxmark.bounds import check
from jaxmark.config import Data, Experiment, validate
from jaxmark.core.anatomy import scheme_of
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.planning.draft import Draft, Wishes
from jaxmark.planning.network import STEPS_SHARE, Device, decide_batch, decide_network
from jaxmark.planning.steps import StepCost
from jaxmark.system.devices import data_mesh
from jaxmark.workflow import task_of

CPU = Device("cpu", None)
# Seconds a voxel and case: what a plan guesses of a CPU.
GUESSED_S = 2.5e-6
CASES, LANDMARKS = 40, 6


def heads(extent: float = 80.0, planar: bool = False, **facts):
    """Placed landmarks in a box of so many mm, in scans of twice the size."""
    rng = np.random.default_rng(0)
    corners = extent * rng.random((1, LANDMARKS, 3))
    corners[0, :2] = [[0.0] * 3, [extent] * 3]
    points = corners + rng.standard_normal((CASES, LANDMARKS, 3)) + extent / 2
    spacing = facts.pop("spacing", (1.0, 1.0, 1.0))
    shape = tuple(int(2 * extent / length) for length in spacing)
    if planar:
        points, shape = points * [1, 1, 0], (*shape[:2], 1)
    return as_placed(survey_of(points, planar=planar, shape=shape, spacing=spacing, **facts))


class Planned:
    """A plan's draft, what it takes, and the experiments whose steps were timed."""

    def __init__(
        self, place, wishes, device=CPU, seconds=GUESSED_S, bytes_a_voxel=1000, given=(), **fields
    ):
        data = Data(**fields)
        if place.survey.planar:
            data.crop = (16, 16, 1)
        names = [*given, *(f"data.{name}" for name in fields)]
        self.draft = Draft(Experiment(HeatmapRegression(), data=data), names)
        self.tried = []

        def probe(experiment, names):
            # What a real one refuses.
            validate(experiment)
            task = task_of(experiment, scheme_of(names), data_mesh())
            check(experiment.method, "config.method", task)
            self.tried.append(experiment.data.crop)
            factor = getattr(experiment.method, "factor", 1)
            voxels = np.prod(experiment.data.crop) / factor**3
            batch = experiment.train.batch
            first = StepCost(
                "first", batch, float(seconds * voxels * batch), int(bytes_a_voxel * voxels * batch)
            )
            return [first] if factor == 1 else [first, StepCost("second", 4, 0.05, 10**6)]

        self.fitted = decide_network(self.draft, place, wishes, device, probe)
        self.experiment = validate(self.draft.experiment)

    @property
    def spacing(self):
        return np.array(self.experiment.data.spacing_mm)

    @property
    def steps(self):
        method = self.experiment.method
        return method.steps + getattr(method, "refine_steps", 0)


def plain(minutes, **fields):
    return Planned(heads(), Wishes("heatmap", minutes), **fields)


def test_more_minutes_give_finer_voxels_or_more_steps_but_none_finer_than_the_scans():
    plans = [plain(minutes) for minutes in (1, 4, 15, 60, 240)]
    volumes = [np.prod(plan.spacing) for plan in plans]
    assert volumes == sorted(volumes, reverse=True) and volumes[0] > 4 and volumes[-1] == 1.0
    for before, after in zip(plans, plans[1:], strict=False):
        assert np.prod(after.spacing) < np.prod(before.spacing) or after.steps > before.steps
    assert all((plan.spacing >= 1.0).all() for plan in plans)


def test_thick_slices_stay_thick_while_the_finer_axes_are_made_coarser():
    place = heads(spacing=(0.5, 0.5, 3.0))
    spacing = Planned(place, Wishes("heatmap", 5.0)).spacing
    assert spacing[2] == 3.0 and spacing[0] == spacing[1] > 0.5


@pytest.mark.parametrize("seconds", [GUESSED_S / 20, GUESSED_S, 15 * GUESSED_S])
@pytest.mark.parametrize("method", ["heatmap", "cascade"])
def test_all_steps_fit_into_the_time(method, seconds):
    plan = Planned(heads(spacing=(0.5, 0.5, 0.5)), Wishes(method, 10.0), seconds=seconds)
    done = plan.experiment.method
    counts = [done.steps, getattr(done, "refine_steps", 0)]
    costs = plan.fitted.costs
    taken = sum(n * cost.seconds for n, cost in zip(counts, costs, strict=False))
    assert 0 < taken <= 10 * 60 * STEPS_SHARE
    assert plan.fitted.minutes == pytest.approx(taken / 60 / STEPS_SHARE)
    assert plan.experiment.train.validate_every <= plan.steps


def test_without_minutes_no_more_steps_are_taken_than_are_of_use():
    usual, long = (
        Planned(heads(), Wishes("heatmap", minutes), seconds=GUESSED_S / 1e4)
        for minutes in (None, 600.0)
    )
    assert usual.steps * usual.experiment.train.batch <= 3000 < long.steps
    assert usual.fitted.usual_minutes is None


def test_a_slower_device_sees_coarser_voxels():
    fast, slow = (plain(10.0, seconds=times * GUESSED_S) for times in (1, 8))
    assert np.prod(slow.spacing) > 2 * np.prod(fast.spacing)


@pytest.mark.parametrize("gigabytes", [0.3, 0.6])
def test_less_memory_gives_coarser_voxels_that_fit(gigabytes):
    free = plain(60.0)
    device = Device("cpu", int(gigabytes * 1e9))
    assert free.fitted.bytes > device.bytes
    plan = plain(60.0, device=device)
    assert plan.fitted.bytes <= 0.85 * device.bytes
    assert np.prod(plan.spacing) > np.prod(free.spacing)


def test_what_can_never_fit_is_refused_with_what_to_set():
    device = Device("cpu", 10**6)
    refused(
        lambda: plain(60.0, device=device, spacing_mm=(1.0, 1.0, 1.0), crop=(96, 96, 96)),
        "config.data.crop: a step needs 0.9 GB, the device has 0.001 GB: set a larger "
        "config.data.spacing_mm",
    )


FINE = (0.3, 0.3, 0.3)


def test_where_scans_are_much_finer_a_second_stage_sees_their_voxels():
    plan = Planned(heads(spacing=FINE), Wishes(minutes=10.0))
    assert isinstance(plan.experiment.method, Cascade)
    assert (plan.spacing >= 0.3).all() and plan.spacing[0] * plan.experiment.method.factor > 0.6
    assert "second stage" in plan.draft.decisions["method"].reason


@pytest.mark.parametrize(
    ("place", "wishes"),
    [
        ({"spacing": FINE}, Wishes("heatmap", 10.0)),
        ({"spacing": FINE}, Wishes("", 10.0, target_mm=4.0)),
        ({}, Wishes("", 60.0)),
        ({"extent": 800.0, "planar": True}, Wishes("", 10.0)),
    ],
)
def test_else_one_network_does(place, wishes):
    plan = Planned(heads(**place), wishes)
    assert isinstance(plan.experiment.method, HeatmapRegression)


def test_a_small_target_needs_the_second_stage():
    wishes = Wishes("", 10.0, target_mm=0.2)
    assert isinstance(Planned(heads(spacing=FINE), wishes).experiment.method, Cascade)


def test_the_method_s_settings_of_the_user_are_kept():
    place = heads(spacing=FINE)
    draft = Draft(Experiment(HeatmapRegression(alpha=9.0)), ["method.alpha"])
    costs = [StepCost("first", 1, 0.01, 10**6)]
    decide_network(draft, place, Wishes(minutes=10.0), CPU, lambda *_: costs)
    # The cascade has no such setting.
    assert isinstance(draft.experiment.method, HeatmapRegression)
    assert draft.experiment.method.alpha == 9.0


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("cases", [3, 5, 8, 40])
def test_a_batch_divides_over_the_devices_and_has_no_case_twice(devices, cases):
    rng = np.random.default_rng(0)
    place = as_placed(survey_of(rng.random((cases, 4, 3))))
    for crop in ((16, 16, 16), (64, 64, 64), (160, 160, 160)):
        draft = Draft(Experiment(HeatmapRegression(), data=Data(crop=crop)), ())
        decide_batch(draft, place, Device("gpu", None, devices))
        batch = draft["train.batch"]
        assert batch % devices == 0 and batch >= devices
        assert batch <= max(cases, devices)
    # What the user has set must divide.
    draft.experiment.train.batch, draft.given = devices + 1, frozenset({"train.batch"})
    if devices > 1:
        refused(
            lambda: decide_batch(draft, place, Device("gpu", None, devices)),
            f"config.train.batch: {devices + 1} does not divide over {devices} devices",
        )


@pytest.mark.parametrize("extent", [7.0, 33.0, 61.0, 90.0])
@pytest.mark.parametrize("minutes", [2.0, 30.0])
@pytest.mark.parametrize("method", ["heatmap", "cascade"])
def test_crops_divide_as_the_method_s_levels_want_it(extent, minutes, method):
    # The probe checks them, and so does this.
    plan = Planned(heads(extent, spacing=(0.7, 0.7, 1.3)), Wishes(method, minutes))
    task = task_of(plan.experiment, scheme_of(("a",)), data_mesh())
    check(plan.experiment.method, "config.method", task)


@pytest.mark.parametrize("side", [76, 77, 78, 79, 80, 156, 158])
def test_a_crop_that_rounding_makes_larger_has_no_level_more_than_divides_it(side):
    # Eighty voxels are enough for four levels, seventy-nine are not.
    rng = np.random.default_rng(0)
    corners = np.array([[0.0, 0, 0], [side / 1.2, (side - 5) / 1.2, side / 1.2]])
    points = 40 + corners + 0.01 * rng.standard_normal((CASES, 2, 3))
    place = as_placed(survey_of(points, shape=(200, 200, 200)))
    plan = Planned(place, Wishes("heatmap", 1e4))
    assert side <= max(plan.experiment.data.crop) <= side + 8


def test_a_crop_that_is_set_has_as_many_levels_as_divide_it():
    plan = Planned(heads(), Wishes("heatmap", 10.0), crop=(96, 92, 96))
    assert plan.experiment.data.crop == (96, 92, 96) and len(plan.experiment.method.widths) == 3


def test_pictures_are_seen_in_pictures_of_one_voxel_depth():
    plan = Planned(heads(900.0, planar=True, unit="px"), Wishes(minutes=10.0), unit="px")
    x, y, z = plan.experiment.data.crop
    assert z == 1 and plan.spacing[2] == 1.0 and min(x, y) > 1


def test_a_step_is_timed_again_only_where_it_has_become_another():
    # The device is slower than is guessed, but there is nothing left to choose.
    fields = {"spacing_mm": (1.0, 1.0, 1.0), "crop": (64, 64, 64)}
    assert len(plain(10.0, seconds=10 * GUESSED_S, **fields).tried) == 1
    assert len(plain(10.0, seconds=10 * GUESSED_S).tried) > 1


def test_a_spacing_that_is_set_is_kept():
    plan = plain(1.0, spacing_mm=(2.0, 2.5, 3.0))
    assert plan.experiment.data.spacing_mm == (2.0, 2.5, 3.0)


def test_a_step_that_does_not_fit_while_it_is_compiled_makes_voxels_coarser():
    tried = []

    def probe(experiment, landmarks):
        tried.append(experiment.data.spacing_mm)
        if len(tried) == 1:
            raise MemoryError
        return [StepCost("pretrain", experiment.train.batch, 0.1, 10**9)]

    place, mine = heads(), Draft(Experiment(HeatmapRegression()), ())
    decide_network(mine, place, Wishes("heatmap", 30.0), CPU, probe)
    assert tried[1][0] > tried[0][0] and mine["data.spacing_mm"] == tried[-1]

    def never(experiment, landmarks):
        raise MemoryError

    refused(
        lambda: decide_network(mine, place, Wishes("heatmap", 30.0), CPU, never),
        "config.data.spacing_mm: no step of training fits into the device's memory",
    )


def test_less_memory_takes_fewer_cases_a_step_before_coarser_voxels():
    place = heads(40.0, spacing=(1.6, 1.6, 1.6))

    def planned(limit):
        def probe(experiment, landmarks):
            size = experiment.train.batch * 10**9
            return [StepCost("pretrain", experiment.train.batch, 1e-3, size)]

        mine = Draft(Experiment(HeatmapRegression()), ())
        decide_network(mine, place, Wishes("heatmap", 30.0), Device("gpu", limit), probe)
        return mine

    much, little = planned(None), planned(3 * 10**9)
    assert much["train.batch"] > 2 >= little["train.batch"]
    assert much["data.spacing_mm"] == little["data.spacing_mm"]


def test_decisions_about_another_method_are_dropped():
    mine = Draft(Experiment(HeatmapRegression()), ())
    mine.decide("method.loss", "cross_entropy", "")
    mine.decide("data.margin", 4, "")
    mine.use_method(Cascade(), {})
    assert set(mine.decisions) == {"data.margin"}
