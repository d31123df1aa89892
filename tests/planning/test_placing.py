"""Where the network looks: landmarks, splits, registration, intensities and augmentation."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
from conftest import refused
from small_cohorts import NAMES, SHAPE_MM, as_placed, survey_of, turn, write_small_cohort

from jaxmark.config import Augment, Data, Experiment
from jaxmark.core.geometry import apply_affine
from jaxmark.data.alignment_trials import Trial, poses
from jaxmark.data.landmarks import write_table
from jaxmark.data.survey import spread
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.planning import placing
from jaxmark.planning.draft import KEPT, Draft
from jaxmark.planning.placing import (
    crop_lengths,
    decide_intensity,
    decide_kind,
    decide_views,
    own_spacing,
    placed,
    surveyed,
)


def draft(given=(), augment=None, **fields) -> Draft:
    """Whose user has set these fields of the data, and `given`."""
    data = Data(workers=1, **fields)
    experiment = Experiment(HeatmapRegression(), data=data, augment=augment or Augment())
    return Draft(experiment, {*given, *(f"data.{name}" for name in fields)})


def alike(count=20, sd=0.5, moves=None, seed=0) -> np.ndarray:
    """Heads (count, 5, 3) about (30, 30, 30) that differ by noise, and by `moves`."""
    rng = np.random.default_rng(seed)
    points = SHAPE_MM + sd * rng.standard_normal((count, 5, 3))
    if moves is not None:
        points = np.stack([apply_affine(move, p) for move, p in zip(moves, points, strict=True)])
    return points + 30


def reported(draft: Draft, field: str) -> tuple:
    found = draft.decisions[field]
    return found.value, found.reason


# What is given.


def test_what_the_user_has_set_is_kept_and_said_to_be():
    place = as_placed(survey_of(alike(), NAMES))
    augment = Augment(rotation_degrees=77.0, flip=0.25)
    mine = draft(["augment.rotation_degrees", "augment.flip"], augment, margin=9)
    decide_views(mine, place, (1.0, 1.0, 1.0))
    decide_intensity(mine, place.survey)
    assert reported(mine, "augment.rotation_degrees") == (77.0, KEPT)
    assert reported(mine, "augment.flip") == (0.25, KEPT)
    assert reported(mine, "data.margin") == (9, KEPT)
    assert mine["augment.scale"] != Augment().scale


@pytest.mark.parametrize("register", ["none", "center", "rigid"])
def test_a_registration_that_is_set_is_the_only_one_tried(monkeypatch, register):
    asked = []
    monkeypatch.setattr(placing, "registered", fake_registration({}, asked))
    mine = draft(register=register)
    place = placed(mine, survey_of(alike(moves=turned(20)), NAMES))
    assert asked == [register] * (register != "none")
    assert mine["data.register"] == place.used.register == register


# Registration.


def turned(count: int, most: float = 60.0, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [turn(rng.uniform(0, most), rng.standard_normal(3)) for _ in range(count)]


def fake_registration(left: dict[str, float], asked: list):
    """In place of registrations, which leave so large shares of the spread; else all of it."""

    def registered(survey, cases, register, metric="correlation", degrees=180.0, workers=0):
        name = "information" if metric == "mutual_information" else register
        asked.append(name)
        points = np.stack([case.landmarks_mm for case in cases])
        mean = points.mean(0)
        points = mean + left.get(name, 1.0) * (points - mean)
        return Trial(register, metric, degrees, points, spread(points), 1.0)

    return registered


@pytest.mark.parametrize(
    ("left", "used"),
    [
        ({"center": 0.95, "rigid": 0.05}, "rigid"),
        ({"center": 0.10, "rigid": 0.10}, "center"),
        ({"center": 0.95, "rigid": 0.95}, "none"),
        ({"rigid": 0.50, "information": 0.05}, "mutual_information"),
    ],
)
def test_the_simplest_registration_that_brings_landmarks_together_is_used(monkeypatch, left, used):
    asked = []
    monkeypatch.setattr(placing, "registered", fake_registration(left, asked))
    mine = draft()
    place = placed(mine, survey_of(alike(sd=0.2, moves=turned(20)), NAMES))
    assert place.used in place.trials
    if used == "mutual_information":
        assert (mine["data.register"], mine["data.metric"]) == (asked[-2], used)
    else:
        assert (mine["data.register"], mine["data.metric"]) == (used, "correlation")
    _, reason = reported(mine, "data.register")
    assert f"none {place.trials[0].spread:.3g}" in reason


def test_scans_that_lie_alike_are_not_registered_at_all(monkeypatch):
    monkeypatch.setattr(placing, "registered", None)
    mine = draft()
    rng = np.random.default_rng(0)
    many = 20 * rng.standard_normal((1, 40, 3)) + rng.standard_normal((12, 40, 3))
    place = placed(mine, survey_of(many))
    assert mine["data.register"] == "none" and "as scans lie" in reported(mine, "data.register")[1]
    np.testing.assert_array_equal(place.points, place.survey.points)


@pytest.mark.parametrize(("most", "degrees"), [(7.0, 30.0), (120.0, 180.0)])
def test_the_search_is_as_wide_as_headers_disagree(monkeypatch, most, degrees):
    monkeypatch.setattr(placing, "registered", fake_registration({"rigid": 0.1}, []))
    mine = draft()
    placed(mine, survey_of(alike(sd=0.1, moves=turned(20, most)), NAMES))
    assert (mine["data.register"], mine["data.search_degrees"]) == ("rigid", degrees)


# Intensities.


def test_scans_in_hounsfield_units_get_a_window_about_what_is_near_landmarks():
    air = survey_of(alike(), NAMES, values=(-1024.0, -500.0, 1500.0), near=(-130.0, 640.0))
    mine = draft()
    decide_intensity(mine, air)
    assert mine["data.intensity"] == "window"
    assert mine["data.intensity_window"] == (-200.0, 700.0)


def test_other_scans_are_scaled_by_percentiles():
    for values in ((0.0, 50.0, 1500.0), (-3000.0, 0.0, 100.0)):
        mine = draft()
        decide_intensity(mine, survey_of(alike(), NAMES, values=values))
        assert mine["data.intensity"] == "percentiles"


def test_a_narrow_window_is_made_wider():
    mine = draft()
    decide_intensity(mine, survey_of(alike(), NAMES, values=(-1000.0, 0.0, 9.0), near=(40.0, 60.0)))
    low, high = mine["data.intensity_window"]
    assert (low, high) == (0.0, 400.0)


# Augmentation.


def flipped(points: np.ndarray, names: tuple[str, ...]) -> float:
    mine = draft()
    decide_views(mine, as_placed(survey_of(points, names)), (1.0, 1.0, 1.0))
    return mine["augment.flip"]


def test_cases_are_mirrored_only_where_the_mean_shape_and_its_names_are_symmetric():
    heads = alike(sd=2.0)
    assert flipped(heads, NAMES) == 0.5
    # The eyes one behind the other: left and right are not along x.
    assert flipped(heads[..., [1, 0, 2]], NAMES) == 0.0
    assert flipped(heads, ("tip", "one eye", "other eye", "jaw", "deep")) == 0.0
    lopsided = heads + np.array([[0, 0, 0], [0, 0, 0], [0, 9, 9], [0, 0, 0], [0, 0, 0]])
    assert flipped(lopsided, NAMES) == 0.0


def test_augmentation_covers_how_cases_are_turned_and_sized():
    sizes = np.linspace(0.9, 1.1, 40)
    heads = sizes[:, None, None] * SHAPE_MM
    heads = np.stack([apply_affine(turn(d), h) for d, h in zip(np.arange(40), heads, strict=True)])
    place = as_placed(survey_of(heads, NAMES))
    mine = draft()
    decide_views(mine, place, (1.0, 1.0, 1.0))
    assert 35 <= mine["augment.rotation_degrees"] <= 40
    assert 0.05 < mine["augment.scale"] <= 0.11
    assert mine["data.margin"] >= mine["augment.translation_voxels"] >= 3


def test_the_box_holds_all_landmarks_and_not_more_than_the_scans():
    place = as_placed(survey_of(alike(), NAMES, shape=(30, 200, 200), spacing=(0.8, 0.8, 2.0)))
    low, high = place.box
    sides = crop_lengths(place)
    assert (sides >= high - low).all()
    assert sides[0] <= max(30 * 0.8, (high - low)[0]) + 1e-9
    assert (sides[1:] > (high - low)[1:]).all()
    np.testing.assert_allclose(own_spacing(place), [0.8, 0.8, 2.0])


def test_where_scans_are_turned_into_a_frame_its_voxels_are_cubes():
    place = as_placed(survey_of(alike(), NAMES, spacing=(0.5, 0.5, 4.0)))
    trial = dataclasses.replace(place.used, register="rigid", search_degrees=180.0)
    place = dataclasses.replace(place, used=trial, poses=poses(place.points))
    np.testing.assert_allclose(own_spacing(place), [1.0, 1.0, 1.0])


# Folders.


def read(root, **fields) -> Draft:
    mine = draft(["data.root"], root=str(root), **fields)
    decide_kind(mine)
    surveyed(mine)
    return mine


def test_a_small_cohort_keeps_no_cases_for_testing(tmp_path):
    write_small_cohort(tmp_path / "root", 6)
    mine = read(tmp_path / "root")
    assert mine["data.test_fraction"] == 0.0
    assert mine["data.val_fraction"] == 0.2
    assert not mine.experiment.data.planar
    assert "data.landmarks" not in mine.decisions


def test_stated_splits_and_folds_are_left_as_they_are(tmp_path):
    write_small_cohort(tmp_path / "root", 6)
    assert "data.test_fraction" not in read(tmp_path / "root", folds=3).decisions
    splits = {"train": ["case0", "case1", "case2"], "val": ["case3"], "test": ["case4"]}
    (tmp_path / "root" / "splits.json").write_text(json.dumps(splits))
    assert "data.test_fraction" not in read(tmp_path / "root").decisions


def test_a_name_with_a_typo_is_left_out(tmp_path):
    tables = write_small_cohort(tmp_path / "root", 6)
    tables["case2"]["eye RR"] = tables["case2"].pop("eye R")
    write_table(tmp_path / "root" / "landmarks.csv", tables)
    assert set(read(tmp_path / "root")["data.landmarks"]) == set(NAMES)
    # Who names landmarks gets those.
    mine = read(tmp_path / "root", landmarks=("tip", "jaw"))
    assert mine["data.landmarks"] == ("tip", "jaw")


def test_a_folder_that_does_not_exist_is_refused():
    for root in ("", "/no/such/folder"):
        refused(partial(read, root), f"config.data.root: there is no folder {root!r}")


def test_two_cases_are_refused(tmp_path):
    root = tmp_path / "root"
    write_small_cohort(root, 2)
    refused(
        partial(read, root),
        f"{root}: 2 cases with both an image and landmarks: at least 4 are needed, and 20 or more "
        "are worth it",
    )


def test_landmarks_without_any_position_are_refused(tmp_path):
    root = tmp_path / "root"
    tables = write_small_cohort(root)
    write_table(root / "landmarks.csv", {case: dict.fromkeys(NAMES) for case in tables})
    refused(partial(read, root), f"{root}: no landmark has a position in three cases or more")


@pytest.mark.parametrize("unplaced", [False, True])
def test_landmarks_at_one_place_are_refused(tmp_path, unplaced):
    root = tmp_path / "root"
    tables = write_small_cohort(root)
    for number, case in enumerate(sorted(tables)):
        tables[case] = dict.fromkeys(NAMES, np.array([10.0 + number, 9, 8]))
    if unplaced:
        # A case without positions does not hide that.
        tables["case0"] = dict.fromkeys(NAMES)
    write_table(root / "landmarks.csv", tables)
    place = "(11, 9, 8) in 'case1'" if unplaced else "(10, 9, 8) in 'case0'"
    refused(
        partial(read, root),
        f"{root}: the landmarks of each case are all at one place, {place}: nothing can be learned",
    )


def test_one_landmark_a_case_is_not_taken_for_landmarks_at_one_place(tmp_path):
    root = tmp_path / "root"
    tables = write_small_cohort(root, 8)
    chosen = {case: NAMES[number % 2] for number, case in enumerate(sorted(tables))}
    tables = {case: {name: tables[case][name]} for case, name in chosen.items()}
    write_table(root / "landmarks.csv", tables)
    assert set(read(root)["data.landmarks"]) == set(NAMES[:2])
    assert math.isfinite(read(root)["data.val_fraction"])
