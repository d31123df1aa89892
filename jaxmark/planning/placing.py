"""Where the network looks: landmarks, splits, registration, box, intensities, augmentation.

All from the training cases; see `placed`.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmark.config import Data
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.shapes import mirror
from jaxmark.data.alignment_trials import (
    LEAST_TO_CHOOSE,
    Poses,
    Trial,
    as_they_are,
    by_middles,
    poses,
    registered,
    tried_cases,
)
from jaxmark.data.annotated import read_annotated
from jaxmark.data.cohort import RawCase
from jaxmark.data.survey import (
    Survey,
    common_landmarks,
    is_planar,
    spread,
    survey_cohort,
    unit_of_pictures,
)
from jaxmark.planning.draft import Draft
from jaxmark.system.errors import InputError
from jaxmark.system.messages import counted

# Fewer cases with landmarks are refused: three for training, one for validation.
LEAST_CASES = 4
# Without splits.json a cohort this small keeps no cases for testing: cross-validation tests all.
_SMALL_COHORT = 20
# Registration is used if it reduces the spread of landmarks by this share, ...
_GAIN = 0.1
# ... and a more flexible kind if it reduces the spread by this share more.
_BETTER = 0.08
# No registration is tried if the best possible one reduces the spread by less.
_HOPE = 0.2
# Mutual information is tried too if correlation leaves this many times the least possible spread.
_FAR = 1.6
# Standard deviation of sizes, as a share, from which on scales are registered as well.
_SIZES_DIFFER = 0.01
# If scans are turned by less against each other, the search is narrow.
_AGREE_DEGREES, _NARROW_DEGREES = 20.0, 30.0
# Beyond the landmarks' box, as a share of its longest side.
CONTEXT = 0.1
# Pictures with longer sides are not seen at their own pixels.
_LARGEST_NATIVE = 512
# The crop has at least this share of a scan's sides, since a single landmark has no box.
_LEAST_SEEN = 0.3
# The range of air in Hounsfield units.
_AIR = (-1100.0, -900.0)
# With fewer training cases augmentation is wider than their differences.
_FEW_CASES = 30
# Cases may be mirrored if the mean shape differs from its mirror image by less, as a share of the
# spread of landmarks.
_SYMMETRIC = 0.75


@dataclasses.dataclass(frozen=True)
class Placed:
    """The common frame as planned, and how landmarks lie in it."""

    survey: Survey
    # What was tried, in that order, on the same cases; one of them is used.
    trials: tuple[Trial, ...]
    used: Trial
    # Landmarks (M, K, 3) of training cases in the common frame; all where nothing is registered.
    points: np.ndarray
    poses: Poses | None  # of these
    boxed: np.ndarray  # (M, K, 3) of all training cases, about: what has to be seen

    @property
    def spread(self) -> float:
        """Error of the mean position, about: each case left out once."""
        return spread(self.points)

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest coordinates (3,) of landmarks in the common frame."""
        return np.nanmin(self.boxed, (0, 1)), np.nanmax(self.boxed, (0, 1))


def decide_kind(draft: Draft) -> None:
    """Decides between pictures and volumes, and the unit; takes no time."""
    data = draft.experiment.data
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        raise InputError("config.data.root", f"there is no folder {data.root!r}")
    if "data.crop" in draft.given:
        planar = data.planar
    else:
        planar = is_planar(data)
        data.crop = (16, 16, 1 if planar else 16)
    if planar:
        unit = "px"
        if "data.unit" not in draft.given:
            unit = unit_of_pictures(data)
        reason = {"mm": "the size of a pixel is known", "px": "the size of a pixel is not known"}
        draft.decide("data.unit", unit, reason[unit])


def surveyed(draft: Draft) -> Survey:
    """Reads the cohort; decides which landmarks are learned, and the splits."""
    data = draft.experiment.data
    annotated = read_annotated(data)
    if len(annotated.cases) < LEAST_CASES:
        raise InputError(
            data.root,
            f"{counted(len(annotated.cases), 'case')} with both an image and landmarks: at least "
            f"{LEAST_CASES} are needed, and 20 or more are worth it",
        )
    names, rare = annotated.names, dict[str, int]()
    if "data.landmarks" not in draft.given:
        names, rare = common_landmarks(annotated)
        if not names:
            raise InputError(data.root, "no landmark has a position in three cases or more")
        everywhere = np.isfinite(annotated.points_mm).all(-1) | annotated.absent
        if rare or not everywhere.all():
            reason = f"{len(names)} of {len(annotated.names)}, which enough cases have"
            draft.decide("data.landmarks", names, reason)
    _check_distinct(data, annotated.points_mm, annotated.cases)
    _decide_splits(draft, len(annotated.cases))
    return survey_cohort(data, rare)


def _check_distinct(data: Data, points: np.ndarray, cases: Sequence[str]) -> None:
    """InputError where all landmarks of the cases are at one place."""
    known = {case: xyz[np.isfinite(xyz).all(-1)] for case, xyz in zip(cases, points, strict=True)}
    several = {case: xyz for case, xyz in known.items() if len(xyz) > 1}
    if several and not any(np.ptp(xyz, axis=0).any() for xyz in several.values()):
        case, xyz = next(iter(several.items()))
        place = ", ".join(f"{v:g}" for v in xyz[0])
        problem = f"the landmarks of each case are all at one place, ({place}) in {case!r}"
        raise InputError(data.root, f"{problem}: nothing can be learned")


def _decide_splits(draft: Draft, count: int) -> None:
    root = Path(draft["data.root"]).expanduser()
    if (root / "splits.json").exists() or draft["data.folds"]:
        return
    if count < _SMALL_COHORT:
        few = f"{count} cases are too few to keep some; --mode=crossval tests all"
        draft.decide("data.test_fraction", 0.0, few)
        share = max(0.2, 1 / count)
        draft.decide("data.val_fraction", share, f"of {count} cases, to choose a checkpoint by")


def placed(draft: Draft, survey: Survey) -> Placed:
    """Decides registration and everything that comes with it."""
    cases = tried_cases(survey)
    trials, used = _decide_registration(draft, survey, cases)
    if used.register in ("none", "middle"):
        way = as_they_are if used.register == "none" else by_middles
        points = way(survey, survey.train).points
        return Placed(survey, tuple(trials), used, points, poses(points), points)
    most = np.isfinite(survey.points).all(-1).sum(1).max()
    if most < LEAST_TO_CHOOSE:
        draft.decide("data.template", cases[0].name, "landmarks are too few to choose one by")
    # Cases that were not registered lie about where a fit of their landmarks brings them.
    ordered = [cases[0], *(case for case in survey.train if case is not cases[0])]
    everyone = np.stack([case.landmarks_mm for case in ordered])
    fitted = poses(everyone, onto=0, scaled=used.register != "rigid")
    known = [used.points] if fitted is None else [used.points, fitted.points]
    boxed = np.concatenate(known) if used.register != "center" else used.points
    return Placed(survey, tuple(trials), used, used.points, poses(used.points), boxed)


def _decide_registration(
    draft: Draft, survey: Survey, cases: Sequence[RawCase]
) -> tuple[list[Trial], Trial]:
    """What brings landmarks nearest to each other, and is worth it; all trials, and that one."""
    plain = as_they_are(survey, cases)
    turned = poses(plain.points)
    degrees = 180.0
    if turned is not None and np.percentile(turned.degrees, 95) < _AGREE_DEGREES:
        degrees = _NARROW_DEGREES
    if "data.search_degrees" in draft.given:
        degrees = draft["data.search_degrees"]

    def tried(register: str, metric: str = draft["data.metric"]) -> Trial:
        return registered(survey, cases, register, metric, degrees, draft["data.workers"])

    if "data.register" in draft.given:
        asked = draft["data.register"]
        known = {"none": as_they_are, "middle": by_middles}
        used = known[asked](survey, cases) if asked in known else tried(asked)
        draft.decide("data.register", asked, "")
        return [plain, used], used
    if survey.planar:
        return _bring_pictures_together(draft, survey, cases, [plain, tried("center")])
    possible = turned.spread if turned is not None else 0.0
    if possible > (1 - _HOPE) * plain.spread:
        reason = (
            f"landmarks are spread by {plain.spread:.3g} mm as scans lie; no turn, shift or scale "
            f"could bring that under {possible:.3g}"
        )
        draft.decide("data.register", "none", reason)
        return [plain], plain
    sizes = turned is not None and np.std(np.log(turned.scales)) > _SIZES_DIFFER
    kinds = ("rigid", "similarity") if sizes else ("rigid",)
    trials = [plain, tried("center"), *(tried(kind) for kind in kinds)]
    best = min(trial.spread for trial in trials)
    if turned is not None and best > _FAR * possible and "data.metric" not in draft.given:
        trials.append(tried(kinds[-1], "mutual_information"))
    used = _chosen(trials)
    draft.decide("data.register", used.register, _why(trials, "mm"))
    if used.register not in ("none", "center"):
        if used.metric != draft["data.metric"]:
            draft.decide("data.metric", used.metric, "it comes nearer than correlation does")
        reason = "landmarks are too few to tell how scans are turned"
        if turned is not None:
            reason = f"scans are turned by up to {turned.degrees.max():.0f}° against each other"
        draft.decide("data.search_degrees", degrees, reason)
    return trials, used


def _bring_pictures_together(
    draft: Draft, survey: Survey, cases: Sequence[RawCase], trials: list[Trial]
) -> tuple[list[Trial], Trial]:
    """Pictures know no registration beyond their centres; small ones may keep their pixels."""
    if survey.unit == "px" and survey.median_of("shape").max() <= _LARGEST_NATIVE:
        trials.insert(1, by_middles(survey, cases))
    used, reason = _chosen(trials), _why(trials, survey.unit)
    if used.register != "middle":
        draft.decide("data.register", used.register, reason)
        return trials, used
    draft.decide("data.grid", "native", reason)
    draft.decide("data.register", "none", "middles of pictures are brought together")
    return trials, used


def _chosen(trials: Sequence[Trial]) -> Trial:
    """The first and simplest trial, unless a later one reduces the spread enough."""
    used = trials[0]
    for trial in trials[1:]:
        gain = _GAIN if used.register == "none" else _BETTER
        if trial.spread < (1 - gain) * used.spread:
            used = trial
    return used


def _why(trials: Sequence[Trial], unit: str) -> str:
    said = ", ".join(f"{trial.words} {trial.spread:.3g}" for trial in trials)
    cases = len(trials[0].points)
    return f"landmarks' spread over {cases} cases in {unit}: {said}"


def decide_intensity(draft: Draft, survey: Survey) -> None:
    """Percentiles, or a window where scans are in Hounsfield units."""
    lowest = np.array([fact.values[0] for fact in survey.facts.values()])
    in_air = (lowest > _AIR[0]) & (lowest < _AIR[1])
    if survey.planar or in_air.mean() < 0.8:
        said = "units differ from scan to scan" if not survey.planar else "pictures have no units"
        draft.decide("data.intensity", "percentiles", said)
        return
    near = np.array([fact.near for fact in survey.facts.values()])
    low = math.floor(np.nanmedian(near[:, 0]) / 100) * 100
    high = math.ceil(np.nanmedian(near[:, 1]) / 100) * 100
    low, high = max(low, -1000), max(high, low + 400)
    draft.decide("data.intensity", "window", f"air is at {np.median(lowest):.0f}: Hounsfield units")
    draft.decide(
        "data.intensity_window", (float(low), float(high)), "seen near most cases' landmarks"
    )


def decide_views(draft: Draft, place: Placed, spacing: Sequence[float], factor: int = 1) -> None:
    """Augmentation: how cases differ from each other in place, turn and size, and a little more.

    The network that sees whole volumes has voxels `factor` times as long as `spacing`.
    """
    few = len(place.survey.train) < _FEW_CASES
    known, unit = place.poses, place.survey.unit
    turned = scaled = 0.0
    said = "landmarks are too few to tell"
    if known is not None:
        turned = float(np.percentile(known.degrees, 95))
        # A uniform distribution of this half-width has the same standard deviation.
        scaled = math.sqrt(3) * float(np.std(np.log(known.scales)))
        said = f"95 % of cases are turned by less than {turned:.1f}° against each other"
    rotation = float(min(max(5 * math.ceil(turned / 5), 10 if few else 5), 180))
    draft.decide("augment.rotation_degrees", rotation, said)
    size = min(max(math.ceil(100 * scaled) / 100, 0.08 if few else 0.05), 0.3)
    draft.decide("augment.scale", size, f"cases differ in size by up to {100 * scaled:.0f} %")
    middles = np.nanmean(place.points, 1)
    away = np.percentile(np.abs(middles - np.median(middles, 0)), 95, axis=0)
    lengths = np.asarray(spacing)
    axes = slice(0, 2 if place.survey.planar else 3)
    voxels = int(min(max(math.ceil(float((away / lengths)[axes].max())), 3 * factor), 16))
    moved = draft.decide(
        "augment.translation_voxels",
        voxels,
        f"landmarks' middles lie up to {away[axes].max():.3g} {unit} from where most lie",
    )
    draft.decide(
        "data.margin", max(moved + (0 if place.survey.planar else 3), 4), "for these moves"
    )
    contrast, brightness = (0.2, 0.1) if place.survey.planar else (0.1, 0.05)
    said = "scanners differ"
    if draft["data.intensity"] == "window":
        contrast, brightness, said = 0.0, 0.0, "Hounsfield units are the same in all scans"
    draft.decide("augment.contrast", contrast, said)
    draft.decide("augment.brightness", brightness, said)
    if place.survey.planar and known is not None and unit == "mm":
        bend = min(math.floor(known.spread * 10) / 10, draft["augment.elastic_grid_mm"] / 8)
        why = f"shapes differ by {known.spread:.2g} {unit} beside place, turn and size"
        draft.decide("augment.elastic_mm", bend, why)
    _decide_flip(draft, place)


def _decide_flip(draft: Draft, place: Placed) -> None:
    """Mirroring, where the frame's x is the anatomy's left and right."""
    scheme = scheme_of(place.survey.names)
    pairs = len(scheme.symmetric_pairs)
    if not pairs:
        return
    seen = np.isfinite(place.points).all(-1).sum(0)[:, None]
    mean = np.nansum(place.points, 0) / np.where(seen, seen, np.nan)
    other = mirror(mean, scheme.mirrored)
    other = other + np.nanmean(mean - other, 0)
    away = float(np.nanmean(np.linalg.norm(mean - other, axis=-1)))
    few = len(place.survey.train) < _FEW_CASES
    share = 0.5 if few and away < _SYMMETRIC * place.spread else 0.0
    said = f"{pairs} left and right pairs; the mean shape and its mirror image differ by {away:.2g}"
    draft.decide("augment.flip", share, f"{said} {place.survey.unit}")


def crop_lengths(place: Placed) -> np.ndarray:
    """(3,) sides of the box to be seen: all landmarks and `CONTEXT`, not more than scans have."""
    low, high = place.box
    if place.used.register == "middle":
        # About the middle, whatever the landmarks do.
        high = np.maximum(np.abs(low), np.abs(high))
        low = -high
    sides = high - low
    turned = place.used.register not in ("none", "center", "middle")
    extents = place.survey.median_of("world_extent")
    if turned and not _headers_agree(place):
        # Axes of scans are not those of the frame.
        extents = np.full(3, extents.max())
    wanted = np.maximum(sides + 2 * CONTEXT * sides.max(), _LEAST_SEEN * extents)
    smallest: np.ndarray = np.minimum(wanted, np.maximum(extents, sides))
    return smallest


def _headers_agree(place: Placed) -> bool:
    return place.used.search_degrees <= _NARROW_DEGREES


def own_spacing(place: Placed) -> np.ndarray:
    """(3,) of the scans along the frame's axes; their mean where scans lie in any direction."""
    spacing = place.survey.median_of("world_spacing")
    if place.used.register in ("rigid", "similarity", "affine") and not _headers_agree(place):
        spacing = np.full(3, float(np.prod(spacing)) ** (1 / 3))
    if place.survey.planar:
        spacing[2] = 1.0
    return spacing
