"""Scans unlike the validation cases are doubted by name; those like them are not."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from jaxmark.core.calibration import unusual_above
from jaxmark.core.grids import Grid
from jaxmark.data.cases import PreparedCase, load_case, save_case
from jaxmark.data.frame import PreparedScan, intensity_profile
from jaxmark.inference.likeness import Usual, usual

SIZE = np.array([80.0, 90.0, 100.0])


def image(rng):
    return rng.gamma(2.0, 0.1 * rng.uniform(0.8, 1.25), (12, 10, 8)).astype(np.float16)


def scan(voxels, **changes):
    values = {"quality": np.nan, "lead": np.nan, "overlap": 1.0, "extent_mm": SIZE}
    values |= {"voxel_mm": SIZE / 50, "grid": Grid((12, 10, 8), np.eye(4))}
    values |= {"profile": intensity_profile(voxels), **changes}
    return PreparedScan(image=voxels, ijk_to_lps=np.eye(4), **values)


def cases(folder, count, rng, size=SIZE):
    found = []
    for number in range(count):
        case = PreparedCase(
            f"c{number}", folder / f"c{number}", np.eye(4), np.zeros((1, 3)),
            np.ones(1, bool), np.zeros(1, bool), extent_mm=size, voxel_mm=size / 50,
        )  # fmt: skip
        save_case(case, image(rng), folder / "scan.nii")
        found.append(load_case(case.folder))
    return found


@pytest.fixture
def known(tmp_path):
    rng = np.random.default_rng(0)
    return usual(cases(tmp_path, 12, rng), (), rng.normal(3.0, 0.2, 12))


def test_scans_like_the_others_are_not_doubted(known):
    rng = np.random.default_rng(1)
    said = [known.doubts(scan(image(rng)), rng.normal(3.0, 0.2)) for _ in range(200)]
    assert sum(map(bool, said)) <= 6


def test_what_is_unlike_is_named_with_its_figure_and_theirs(known):
    own = image(np.random.default_rng(2))
    assert known.doubts(scan(own), 3.0) == []
    (line,) = known.doubts(scan(own * 0 + 1), 3.0)
    assert line.startswith("intensities unlike the validation cases' (distance 0.7")
    (line,) = known.doubts(scan(own), 0.5)
    assert "the network sees less" in line and "evidence 0.50, theirs 2." in line
    (line,) = known.doubts(scan(own, overlap=0.7), 3.0)
    assert line == (
        "70 % of the prepared volume lies in the scan, in the validation cases at least 100 %"
    )
    both = known.doubts(scan(own, extent_mm=SIZE / 3, voxel_mm=SIZE / 150), 3.0)
    assert both[0].startswith("a field of view of 26.7 x 30") and both[1].startswith("voxels of")


def test_few_validation_cases_leave_it_to_the_training_cases(tmp_path):
    rng = np.random.default_rng(0)
    training = cases(tmp_path / "train", 6, rng)
    known = usual(cases(tmp_path / "val", 2, rng), training, np.array([3.0, 3.1]))
    # Of what the network has learned by heart its evidence says nothing.
    assert known.of == "training" and known.evidence is None and len(known.profile) == 6
    (line,) = known.doubts(scan(image(rng) * 0 + 1), -9.0)
    assert "the training cases'" in line
    assert usual([], [], np.zeros(0)) is None


def test_cases_of_earlier_versions_lack_a_size_and_nothing_is_doubted_of_it(tmp_path):
    rng = np.random.default_rng(0)
    old = cases(tmp_path, 6, rng, size=np.full(3, np.nan))
    assert "extent_mm" not in json.loads((old[0].folder / "case.json").read_text())
    known = usual(old, (), rng.normal(3, 0.2, 6))
    assert known.doubts(scan(image(rng), extent_mm=SIZE * 9), 3.0) == []


def test_what_is_usual_survives_json_and_damage_is_refused(known):
    tree = json.loads(json.dumps(known.to_json()))
    again = Usual.from_json(tree)
    for field in dataclasses.fields(Usual):
        before, after = getattr(known, field.name), getattr(again, field.name)
        if field.name != "of":
            np.testing.assert_allclose(after, before, atol=1e-5)
    for change in (
        {"profile": tree["profile"][:3]},
        {"profile": []},
        {"of": "other"},
        {"evidence": [1.0]},
        {"evidence": [float("nan")] * 12},
        {"overlap": [None] * 12},
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Usual.from_json(tree | change)


@pytest.mark.parametrize("count", [4, 12, 40])
def test_the_bound_is_exceeded_as_rarely_as_it_says(count):
    rng = np.random.default_rng(3)
    seen, following = rng.normal(size=(5000, count)), rng.normal(size=5000)
    above = np.mean([x > unusual_above(row, 0.02) for row, x in zip(seen, following, strict=True)])
    assert 0.25 * 0.02 < above < stats.binom.ppf(0.999, 5000, 0.02) / 5000
    assert np.isnan(unusual_above(np.ones(1), 0.02))
