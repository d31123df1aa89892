"""Which network, how finely it sees, how many steps: what fits into the device and the time."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmark.config import Experiment
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.planning.draft import Draft, Wishes
from jaxmark.planning.placing import Placed, crop_lengths, decide_views, own_spacing
from jaxmark.planning.steps import StepCost
from jaxmark.system.errors import InputError
from jaxmark.system.memory import gigabytes, ran_out

# Minutes of training if the user states none: on a CPU, on an accelerator.
USUAL_MINUTES = {"cpu": 30.0}
ACCELERATED_MINUTES = 60.0
# Share of the time for steps; the rest is for validation and compilation.
STEPS_SHARE = 0.85
# Cases that training sees, repeats included, for pictures (True) and volumes (False): the least
# that a network learns from, and the usual number, at which training ends if no minutes are stated.
_LEAST_SEEN, _USUAL_SEEN = {True: 8000, False: 1200}, {True: 24_000, False: 3000}
# Seconds of a step for a voxel of a case, assumed before a step is timed: two CPU cores, a GPU.
_GUESS_S = {"cpu": 2.5e-6}
_GUESS_ACCELERATED_S = 1e-8
# With stated minutes training may see this many times the usual number of cases.
_LONGER = 4
_VALIDATIONS = 12
# No further step is timed if a step took the assumed time within this factor.
_NEAR = 1.35
_MOST_PROBES = 3
# A batch has about this many voxels: several small volumes share a step.
_BATCH_VOXELS = 220_000
_MOST_BATCH = 8
# Crops with fewer voxels show no anatomy.
_LEAST_VOXELS = 20_000
# Voxels along the longest side of a network's coarsest level, about.
_COARSEST = 10
_MOST_LEVELS = 5
_WIDTHS = {True: (16, 32, 64, 96, 128), False: (16, 32, 64, 128, 128)}
# Width of the target Gaussians in voxels.
SIGMA_VOXELS = 1.6
# If voxels of the network are this many times as long as the scans' own, a second stage is used.
_FINER = 1.6
# The first stage of the cascade: its share of the time, and the least cases that it sees.
_FIRST_SHARE, _FIRST_SEEN = 0.3, 300
# With fewer training cases the second stage's networks share all but their last layers.
_FEW_CASES = 100
_PATCH = 16
# Share of a device's memory that a step may take.
_FILLED = 0.85
# Factor by which a step is taken to exceed the memory if it fails while it is compiled.
_RAN_OUT = 2.0

Probe = Callable[[Experiment, tuple[str, ...]], list[StepCost]]


@dataclasses.dataclass(frozen=True)
class Device:
    """The devices that train."""

    platform: str
    bytes: int | None  # None: not known
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class _Budget:
    """What the settings have to fit into."""

    seconds: float  # of all steps
    rate: float  # assumed or measured seconds of a step for a voxel of a case
    device: Device
    most_batch: int
    refine_batch: int  # of the cascade's second stage


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Time and memory of the planned training."""

    costs: tuple[StepCost, ...]
    minutes: float
    bytes: int
    # Minutes in which training would see the usual number of cases; None: it does.
    usual_minutes: float | None


def decide_network(
    draft: Draft, place: Placed, wishes: Wishes, device: Device, probe: Probe
) -> Fitted:
    """Method, spacing, crop, widths, batch and steps.

    Raises:
      InputError: nothing that could learn fits into the device or the time.
    """
    minutes = wishes.minutes or USUAL_MINUTES.get(device.platform, ACCELERATED_MINUTES)
    own = own_spacing(place)
    rate = _GUESS_S.get(device.platform, _GUESS_ACCELERATED_S)
    seconds = 60 * minutes * STEPS_SHARE
    kept, refine_batch = draft.given_of_method, Cascade().refine_batch
    # A rate that the memory demands: a fast device must not make voxels finer again.
    least_rate = 0.0
    timed: Experiment | None = None
    costs: list[StepCost] = []
    most_batch = _MOST_BATCH
    for _ in range(_MOST_PROBES):
        most_voxels = seconds / rate / _LEAST_SEEN[place.survey.planar]
        spacing = _finest(draft, place, own, most_voxels)
        cascade, why = _wants_cascade(draft, place, wishes, own, spacing)
        draft.note("method", "Cascade" if cascade else "HeatmapRegression", why)
        settle = _cascade if cascade else _heatmap
        budget = _Budget(seconds, rate, device, most_batch, refine_batch)
        settle(draft, place, own, budget, kept)
        if draft.experiment == timed:
            break
        timed = copy.deepcopy(draft.experiment)
        try:
            costs = probe(timed, place.survey.names)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            costs = []
            rate = least_rate = max(rate, least_rate) * _RAN_OUT
            continue
        measured = max(_rate_of(costs[0], draft.experiment), least_rate)
        over = [_over(cost, device) for cost in costs]
        if over[0] > 1 and draft["train.batch"] > device.devices:
            most_batch = max(int(draft["train.batch"] / over[0]), 1)
        elif over[0] > 1:
            # A higher rate leads to fewer voxels.
            rate = least_rate = max(rate, measured) * over[0]
        elif over[-1] > 1:
            refine_batch = max(int(refine_batch / over[-1]), 1)
        elif rate / _NEAR < measured < rate * _NEAR:
            break
        else:
            rate = measured
    if not costs:
        problem = "no step of training fits into the device's memory: set a larger spacing"
        raise InputError("config.data.spacing_mm", problem)
    return _decide_steps(draft, place, wishes, minutes, costs, device)


def _over(cost: StepCost, device: Device) -> float:
    """How many times more memory a step needs than the device should be filled with."""
    return 0.0 if device.bytes is None else cost.bytes / (_FILLED * device.bytes)


def _finest(draft: Draft, place: Placed, own: np.ndarray, most_voxels: float) -> np.ndarray:
    """(3,) the finest spacing that makes at most so many voxels: the scans' own, or coarser.

    Fine axes are made coarser first: then voxels come nearer to cubes.
    """
    if "data.spacing_mm" in draft.given:
        return np.asarray(draft["data.spacing_mm"])
    sides = crop_lengths(place)
    axes = slice(0, 2 if place.survey.planar else 3)
    spacing = own.copy()

    def voxels(lengths: np.ndarray) -> float:
        return float(np.prod(np.ceil(sides[axes] / lengths[axes])))

    floor = float(spacing[axes].min())
    while voxels(spacing) > max(most_voxels, _LEAST_VOXELS):
        floor *= 1.02
        spacing[axes] = np.maximum(spacing[axes], floor)
    return _rounded(spacing)


def _rounded(lengths: np.ndarray) -> np.ndarray:
    """To three digits."""
    digits = 2 - np.floor(np.log10(lengths)).astype(int)
    return np.array([round(float(v), int(d)) for v, d in zip(lengths, digits, strict=True)])


def _wants_cascade(
    draft: Draft, place: Placed, wishes: Wishes, own: np.ndarray, spacing: np.ndarray
) -> tuple[bool, str]:
    """Whether a second stage looks at the scans' own voxels, and why."""
    unit = place.survey.unit
    if wishes.method:
        return wishes.method == "cascade", "set by you"
    if place.survey.planar:
        return False, "pictures are seen as a whole"
    ratio = float(np.prod(spacing / own)) ** (1 / 3)
    seen, whole = _listed(spacing), _listed(own)
    foreign = [n for n in draft.given_of_method if not hasattr(Cascade(), n)]
    if foreign:
        return False, f"config.method.{foreign[0]}, set by you, is not the cascade's"
    if wishes.target_mm is not None and wishes.target_mm > 0.5 * float(spacing.max()):
        why = f"voxels of {seen} {unit} are fine enough for the {wishes.target_mm:g} mm wanted"
        return False, why
    if ratio < _FINER:
        return False, f"one network sees {seen} {unit}, nearly the scans' own {whole}"
    return True, (
        f"one network has time for voxels of {seen} {unit}; scans have {whole}, which a second "
        "stage sees in patches"
    )


def _heatmap(
    draft: Draft, place: Placed, own: np.ndarray, budget: _Budget, kept: dict[str, Any]
) -> None:
    """All settings of the plain network but for its steps."""
    planar = place.survey.planar
    most = budget.seconds / budget.rate / _LEAST_SEEN[planar]
    spacing = _finest(draft, place, own, most)
    draft.use_method(HeatmapRegression(), kept)
    _decide_grid(draft, place, spacing, _spacing_reason(place, own, spacing, most))
    decide_batch(draft, place, budget.device, budget.most_batch)
    _decide_heatmaps(draft, place, "loss", "sigma_mm")
    draft.decide("method.learning_rate", 1e-3, "with the cross-entropy; Adam")
    draft.decide("method.decay", 0.6, "the rate falls to 0 over the last part of training")


def _cascade(
    draft: Draft, place: Placed, own: np.ndarray, budget: _Budget, kept: dict[str, Any]
) -> None:
    """All settings of the cascade but for its steps; the rate is the first stage's."""
    unit = place.survey.unit
    seconds = _FIRST_SHARE * budget.seconds
    coarse = _finest(draft, place, own, seconds / budget.rate / _FIRST_SEEN)
    draft.use_method(Cascade(), kept)
    fine = np.asarray(draft["data.spacing_mm"]) if "data.spacing_mm" in draft.given else own
    factor = int(min(max(math.ceil(float((coarse / fine).max()) - 0.05), 2), 4))
    factor = draft.decide("method.factor", factor, "voxels of the second stage in one of the first")
    if "data.spacing_mm" not in draft.given:
        fine = _rounded(np.maximum(own, coarse / factor))
    stated = f"scans have {_listed(own)}; the first stage sees {factor} times that"
    _decide_grid(draft, place, fine, stated, factor)
    decide_batch(draft, place, budget.device, budget.most_batch)
    first = float(np.prod(fine * factor)) ** (1 / 3)
    _decide_heatmaps(draft, place, "weights", "sigma_mm", factor)
    draft.decide("method.patch", _PATCH, "voxels a side of what the second stage sees")
    reach = min(1.2 * first, _PATCH * float(fine.min()) / 2)
    draft.decide("method.reach_mm", float(f"{reach:.2g}"), f"about a voxel ({unit}) of the first")
    draft.decide("method.looks", 2, "the second look begins nearer")
    draft.decide("method.shifted", 1, "the mean of eight shifted patches is nearer")
    few = len(place.survey.train) < _FEW_CASES
    draft.decide("method.shared", few, f"{len(place.survey.train)} cases for a network a landmark")
    draft.decide("method.refine_widths", (16, 32, 32), "for patches of this size")
    devices = budget.device.devices
    refined = max(budget.refine_batch // devices, 1) * devices
    draft.decide("method.refine_batch", refined, "cases, each with all its patches")
    draft.decide("method.decay", 0.6, "the rate falls to 0 over the last part of training")


def _decide_heatmaps(draft: Draft, place: Placed, loss: str, sigma: str, factor: int = 1) -> None:
    """What both networks have in common: levels, loss, width of the targets, coordinates."""
    planar = place.survey.planar
    crop = np.maximum(np.asarray(draft["data.crop"]) // factor, 1)
    levels = _levels(crop)
    widths = _WIDTHS[planar][:levels]
    draft.decide(
        "method.widths",
        widths,
        f"{levels} levels: the coarsest has {max(crop) >> (levels - 1)} voxels",
    )
    draft.decide("method.head", 64, "a hidden layer before the heatmaps")
    draft.decide(f"method.{loss}", "cross_entropy", "it learns faster than the squared error")
    axes = slice(0, 2 if planar else 3)
    lengths = np.asarray(draft["data.spacing_mm"])[axes] * factor
    width = SIGMA_VOXELS * float(np.prod(lengths)) ** (1 / len(lengths))
    draft.decide(f"method.{sigma}", float(f"{width:.2g}"), f"{SIGMA_VOXELS:g} voxels")
    share = place.spread / float(crop_lengths(place).max())
    where = share < 0.25 and draft["augment.rotation_degrees"] <= 30
    said = f"landmarks are spread by {100 * share:.0f} % of what is seen"
    draft.decide("method.coordinates", where, said)


def _wanted_levels(sides: Sequence[int] | np.ndarray) -> int:
    levels = int(math.log2(max(max(sides) / _COARSEST, 1))) + 1
    return min(max(levels, 3), _MOST_LEVELS)


def _levels(crop: Sequence[int] | np.ndarray) -> int:
    """Of a network for this crop, which all levels have to divide; pictures have one voxel in z."""
    levels = _wanted_levels(crop)
    while any(side % 2 ** (levels - 1) for side in crop if side > 1):
        levels -= 1
    return levels


def _decide_grid(
    draft: Draft, place: Placed, spacing: np.ndarray, why: str, factor: int = 1
) -> None:
    """Spacing, views, and a crop that the network's levels divide."""
    planar = place.survey.planar
    if draft["data.grid"] == "native":
        spacing, why = np.ones(3), "pictures keep their own pixels"
    chosen = draft.decide("data.spacing_mm", tuple(float(v) for v in spacing), why)
    decide_views(draft, place, chosen, factor)
    sides = np.ceil(crop_lengths(place) / chosen).astype(int)
    block = factor * 2 ** (_wanted_levels(sides // factor) - 1)
    x, y, z = (int(-(-side // block) * block) for side in sides)
    crop = (x, y, 1 if planar else z)
    lengths = " x ".join(f"{side:.3g}" for side in (np.array(crop) * chosen)[: 2 if planar else 3])
    low, high = place.box
    held = " x ".join(f"{side:.3g}" for side in (high - low)[: 2 if planar else 3])
    unit = place.survey.unit
    draft.decide("data.crop", crop, f"{lengths} {unit} hold the landmarks' box, {held}, and some")
    if factor > 1 and "data.margin" not in draft.given:
        margin = factor * math.ceil(draft["data.margin"] / factor)
        draft.decide("data.margin", margin, "for these moves, in whole voxels of the first stage")


def _spacing_reason(place: Placed, own: np.ndarray, spacing: np.ndarray, most: float) -> str:
    unit = place.survey.unit
    planar = place.survey.planar
    own, spacing = (lengths[: 2 if planar else 3] for lengths in (own, spacing))
    if np.allclose(spacing, own):
        return f"their own, {_listed(own)} {unit}"
    seen = _LEAST_SEEN[planar]
    return (
        f"their own are {_listed(own)} {unit}; in the time {seen:,} cases of {most / 1000:.0f} "
        "thousand voxels can be learned from"
    )


def _rate_of(cost: StepCost, experiment: Experiment) -> float:
    """Seconds a voxel and case, of the first phase."""
    factor = getattr(experiment.method, "factor", 1)
    voxels = np.prod(np.array(experiment.data.crop) / ([factor] * 3))
    return cost.seconds / float(voxels) / cost.batch


def _decide_steps(
    draft: Draft,
    place: Placed,
    wishes: Wishes,
    minutes: float,
    costs: Sequence[StepCost],
    device: Device,
) -> Fitted:
    """As many as the time allows, but not more than are of use."""
    most_bytes = max(cost.bytes for cost in costs)
    if device.bytes is not None and most_bytes > device.bytes:
        problem = f"a step needs {gigabytes(most_bytes)}, the device has {gigabytes(device.bytes)}"
        raise InputError("config.data.crop", f"{problem}: set a larger config.data.spacing_mm")
    usual = _USUAL_SEEN[place.survey.planar]
    most = usual * (_LONGER if wishes.minutes is not None else 1)
    # Field -> the step it counts, and its share of the time that is left.
    shares = {"method.steps": (costs[0], 1.0)}
    if len(costs) == 2:
        shares = {
            "method.steps": (costs[0], _FIRST_SHARE),
            "method.refine_steps": (costs[1], 1.0),
        }
    left = 60 * minutes * STEPS_SHARE
    taken = usual_s = 0.0
    for field, (cost, share) in shares.items():
        wanted = most * (share if len(costs) == 2 else 1.0) / cost.batch
        steps = max(_rounded_steps(int(min(left * share / cost.seconds, wanted))), 1)
        why = f"{1000 * cost.seconds:.0f} ms each, measured here, {cost.batch} cases a step"
        steps = draft.decide(field, steps, why)
        left -= steps * cost.seconds
        taken += steps * cost.seconds
        usual_s += cost.seconds * wanted * usual / most
    total = sum(draft[field] for field in shares)
    every = max(_rounded_steps(total // _VALIDATIONS), 1)
    draft.decide("train.validate_every", every, f"of {total:,} steps in all")
    draft.decide("train.log_every", max(min(every // 10, 20), 1), "lines of the log")
    return Fitted(
        costs=tuple(costs),
        minutes=taken / 60 / STEPS_SHARE,
        bytes=most_bytes,
        usual_minutes=usual_s / 60 / STEPS_SHARE if usual_s > 1.2 * taken else None,
    )


def _rounded_steps(steps: int) -> int:
    """Two digits, downwards."""
    if steps < 100:
        return steps
    unit = 10 ** (len(str(steps)) - 2)
    return int(steps // unit * unit)


def _listed(lengths: np.ndarray | Sequence[float]) -> str:
    if np.allclose(lengths, lengths[0], rtol=0.02):
        return f"{lengths[0]:.3g}"
    return " x ".join(f"{v:.3g}" for v in lengths)


def decide_batch(draft: Draft, place: Placed, device: Device, most: int = _MOST_BATCH) -> None:
    """Small volumes share a step."""
    factor = getattr(draft.experiment.method, "factor", 1)
    voxels = float(np.prod(draft["data.crop"])) / factor ** (1 if place.survey.planar else 3)
    fits = int(min(max(round(_BATCH_VOXELS / voxels), 1), most))
    fits = min(fits, len(place.survey.train))
    # Of fewer cases than devices some are seen twice.
    devices = device.devices
    batch = max(fits // devices, 1) * devices
    said = f"of {voxels / 1000:.0f} thousand voxels a case"
    batch = draft.decide("train.batch", batch, said)
    if batch % devices:
        raise InputError("config.train.batch", f"{batch} does not divide over {devices} devices")
