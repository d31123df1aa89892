"""Label maps and attributes of cases, from prediction to the report, and figures by hand."""

import csv
import dataclasses
import functools
import json
import types

import numpy as np
import pytest
from blocks import FORK, PRESENT, SCHEME, Thresholds, blocks, model, plain_grid, scan_on, stored
from conftest import refused
from test_report import Page

from jaxmark import workflow
from jaxmark.config import Data
from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import apply_affine
from jaxmark.core.grids import Grid
from jaxmark.core.segmentation import agreement
from jaxmark.data.cases import CaseSegments, PreparedCase, load_case, save_case
from jaxmark.data.scans import read_voxels, write_scan
from jaxmark.data.unpaired import read_unpaired
from jaxmark.inference import calibration
from jaxmark.inference.predictor import Predictor
from jaxmark.inference.segments import ScanSegments
from jaxmark.methods.method import FORKS, SEGMENTATION, SEGMENTS_PRESENT
from jaxmark.results.compare import as_text, compare, write_comparison
from jaxmark.results.measures import attributes, segmentation
from jaxmark.results.predictions import write_segments
from jaxmark.system.devices import data_mesh
from jaxmark.system.files import read_json

# What the segments are in the files of someone: the order is not the scheme's.
VALUES = (7, 3, 5)


class Cohort(types.SimpleNamespace):
    """What the stages ask of a prepared cohort."""

    def split(self, name):
        return [self.cases[case] for case in self.splits[name]]

    def doubts(self):
        return {}


class Run(workflow.Run):
    """A run whose network needs no training."""

    def variables(self):
        return 0, self.prepared.variables

    @property
    def predictor(self):
        return Predictor(self.method, 2, data_mesh())


def make_case(root, name, shape, place, image, made_from):
    """A case with a label map by hand: the blocks, and something that is no segment."""
    points = apply_affine(place, np.stack(np.indices(shape), -1).astype(float))
    truth = np.array([0, VALUES[0], VALUES[1]], np.uint8)[blocks(points)]
    truth[0] = 9
    source = root / "segmentations" / f"{name}.nii.gz"
    write_scan(source, truth, place)
    case = PreparedCase(
        name=name,
        folder=root / "prepared" / name,
        ijk_to_lps=plain_grid(),
        landmarks_mm=np.array([[1.0, 2, 3], [4, 5, 6]]),
        present=np.ones(2, bool),
        absent=np.zeros(2, bool),
    )
    save_case(case, image.astype(np.float16), made_from)
    segments = CaseSegments(
        present=np.array([True, True, False]),
        absent=np.array([False, False, True]),
        grid=Grid(shape, place),
        source=source,
        values=VALUES,
    )
    return dataclasses.replace(load_case(case.folder), segments=segments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four cases, predicted, evaluated and reported, one of them without a label map."""
    return reported(tmp_path_factory.mktemp("run"), Thresholds())


def reported(root, network):
    trained = model(root / "preparation")
    cases = {}
    for name, shape, place in list(stored(np.random.default_rng(0)))[:4]:
        scan = scan_on(shape, place)
        prepared = trained.frame.apply(scan, trained.frame.align(scan))
        cases[name] = make_case(root, name, shape, place, prepared.image, root / "config.json")
    last = cases["oblique0"]
    unseen = dataclasses.replace(last.segments, source=None, values=(), present=np.zeros(3, bool))
    unseen = dataclasses.replace(unseen, absent=np.zeros(3, bool))
    cases["oblique0"] = dataclasses.replace(last, segments=unseen)
    prepared = Cohort(
        landmarks=SCHEME.landmarks,
        cases=cases,
        splits={"train": tuple(cases), "val": tuple(cases), "test": tuple(cases)},
        frame=trained.frame,
        variables=trained.variables,
    )
    (root / "config.json").write_text(json.dumps({"name": "blocks"}))
    method = network.build()
    found = Run(trained.experiment, root, data_mesh(), prepared, None, method)
    workflow.predict(found)
    workflow.evaluate(found)
    workflow.report(found)
    return found


def test_every_stage_leaves_its_files(run, capsys):
    folder = run.workdir / "predictions"
    for case in run.prepared.cases:
        assert (folder / f"{case}.seg.nrrd").exists()
        assert (folder / f"{case}.mrk.json").exists()
    table = list(csv.DictReader((folder / "segmentations" / "attributes.csv").open(newline="")))
    assert [row["case"] for row in table] == list(run.prepared.cases)
    summary = read_json(run.workdir / "evaluation" / "summary.json", 2)
    assert summary["segmentation"]["n_scans"] == 3
    assert (run.workdir / "calibration.json").exists()
    capsys.readouterr()
    workflow.evaluate(run)
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("MRE") and second.startswith("Dice 0.")
    # Two of three segments are there and said to be; the third is neither.
    assert "segments told rightly 100.0 %" in second


def test_measures_are_those_of_the_maps_in_the_files(run):
    maps = segmentation.read_maps(run.workdir / "evaluation")
    assert maps.cases == ("plain", "flipped", "permuted")
    for n, name in enumerate(maps.cases):
        segments = run.prepared.cases[name].segments
        voxels = read_voxels(segments.source).voxels
        truth = np.select([voxels == VALUES[0], voxels == VALUES[1]], [1, 2]).astype(np.uint8)
        predicted = read_voxels(
            run.workdir / "predictions" / "segmentations" / f"{name}.nii.gz"
        ).voxels
        expected = agreement(truth, predicted, 3)
        for measure in ("dice", "cldice", "betti0_error"):
            row = [*getattr(expected, measure), getattr(expected, f"tree_{measure}")]
            np.testing.assert_array_equal(maps.values[measure][n], row)
        volumes = [
            (labels == label).sum() * 1.5**3 for labels in (truth, predicted) for label in (1, 2)
        ]
        for column, expected_mm3 in zip(
            ("volume_true_mm3", "volume_predicted_mm3"), (volumes[:2], volumes[2:]), strict=True
        ):
            found = maps.values[column][n]
            np.testing.assert_allclose(found, [*expected_mm3, 0, sum(expected_mm3)])
        assert maps.values["dice"][n, 1] > 0.6 and np.isnan(maps.values["dice"][n, 2])


def test_attributes_are_those_of_the_files(run):
    told = attributes.read_attributes_table(run.workdir / "evaluation")
    segments, landmarks = told["segment"], told["landmark"]
    assert segments.cases == tuple(run.prepared.cases)
    np.testing.assert_allclose(segments.probability, np.tile(PRESENT, (4, 1)))
    np.testing.assert_allclose(landmarks.probability, np.tile(FORK, (4, 1)))
    np.testing.assert_array_equal(segments.known, [[True] * 3] * 3 + [[False] * 3])
    np.testing.assert_array_equal(segments.true, [[True, True, False]] * 3 + [[False] * 3])
    # Both segments at "a" are there; at "b" one is missing.
    np.testing.assert_array_equal(landmarks.true[:3], [[True, False]] * 3)
    assert landmarks.known[:3].all() and not landmarks.known[3].any()
    found = read_json(run.workdir / "evaluation" / "summary.json", 2)["attributes"]
    assert (found["segments"]["all"]["n_true"], found["segments"]["all"]["n_false"]) == (6, 3)
    assert found["segments"]["may_change"]["n_false"] == 0
    assert found["segments"]["may_change"]["specificity"]["share"] is None
    assert found["landmarks"]["all"]["accuracy"]["share"] == 1
    # A fork follows at "a" and is predicted. At "b" a segment is said to be missing that cannot
    # be: a fork follows there, too, and none is predicted.
    assert found["self_consistency"]["share"] == 0.5


def test_the_report_shows_maps_and_variants(run):
    text = (run.workdir / "report" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "Segmentation" in page.words and "Anatomical variants" in page.words
    assert "Missing segments: 3 found, 0 missed, 0 false alarms." in page.words
    for case in ("Worst", "Median", "Best"):
        for what in ("truth", "prediction"):
            assert f'alt="{case} case: ' in text and f': {what}"' in text
    assert page.references and all(r.startswith("data:image/") for r in page.references)


@pytest.mark.parametrize(
    "tells",
    [(SEGMENTATION,), (SEGMENTATION, FORKS), (SEGMENTS_PRESENT,), (SEGMENTS_PRESENT, FORKS)],
)
def test_what_a_method_does_not_tell_is_not_measured(tmp_path, capsys, tells):
    found = reported(tmp_path, Thresholds(*tells))
    line = capsys.readouterr().out
    summary = read_json(tmp_path / "evaluation" / "summary.json", 2)
    told = summary["attributes"] or {}
    assert (summary["segmentation"] is not None) == (SEGMENTATION in tells) == ("Dice 0." in line)
    assert (told.get("segments") is not None) == (SEGMENTS_PRESENT in tells)
    assert (told.get("landmarks") is not None) == (FORKS in tells) == ("bifurcations" in line)
    assert (told.get("self_consistency") is not None) == ({SEGMENTS_PRESENT, FORKS} <= {*tells})
    words = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8")).words
    assert ("Anatomical variants" in words) == bool(told)
    assert ("Missing segments: 3 found" in words) == (SEGMENTS_PRESENT in tells)
    (row,) = compare({"only": [found.workdir]}, "only")
    names = {"dice": SEGMENTATION, "segments_right": SEGMENTS_PRESENT, "bifurcations_right": FORKS}
    assert set(row.segments) == {name for name, asked in names.items() if asked in tells}
    _, _, head, _, line, *_ = as_text([row]).partition("Segments:")[2].splitlines()
    assert line.startswith("| only |") and head.endswith("consistent (%) |")
    assert line.endswith("| – |") == (not {SEGMENTS_PRESENT, FORKS} <= {*tells})


def test_maps_of_a_split_are_not_held(run, monkeypatch):
    held = []
    observe = calibration.observe

    def watched(found, *rest, **more):
        held.extend(found)
        return observe(found, *rest, **more)

    monkeypatch.setattr(calibration, "observe", watched)
    (run.workdir / "calibration.json").unlink()
    workflow.calibrate(run, *run.variables())
    assert len(held) == 4 and not any(found.prediction.maps for found in held)
    assert all(len(found.prediction.probabilities["segments_present"]) == 3 for found in held)


def test_what_prediction_did_not_write_is_asked_for(run, tmp_path):
    cases = list(run.prepared.cases.values())
    evaluated = run.workdir / "evaluation"
    with pytest.raises(ExceptionGroup) as caught:
        segmentation.measure(cases, SCHEME, tmp_path, 1)
    lines = [str(error) for error in caught.value.exceptions]
    assert len(lines) == 3
    assert all("no such file: run --mode=predict" in line for line in lines)
    refused(lambda: attributes.measure(cases, SCHEME, tmp_path), "run --mode=predict")
    refused(lambda: segmentation.read_maps(tmp_path), "segmentation.csv: cannot be read")
    refused(lambda: attributes.read_attributes_table(tmp_path), "attributes.csv: cannot be read")
    assert segmentation.measure(cases[3:], SCHEME, tmp_path, 1) is None
    assert segmentation.read_maps(evaluated).segments == ("dim", "bright", "never")


def test_a_label_map_on_another_grid_is_refused(run, tmp_path):
    case = run.prepared.cases["plain"]
    write_scan(
        tmp_path / "segmentations" / "plain.nii.gz", np.zeros((9, 8, 7), np.uint8), np.eye(4)
    )
    measured = functools.partial(segmentation.measure, [case], SCHEME, tmp_path, 1)
    both = "plain.nii.gz: is on another grid than its scan: it has 9 x 8 x 7 voxels", "40 x 37 x 34"
    refused(measured, *both)
    # As large, and elsewhere.
    grid = case.segments.grid
    aside = grid.ijk_to_lps.copy()
    aside[0, 3] += 1
    nothing = np.zeros(grid.shape, np.uint8)
    write_scan(tmp_path / "segmentations" / "plain.nii.gz", nothing, aside)
    refused(measured, "plain.nii.gz: is on another grid", "1.00 mm apart")


DAMAGE = {
    "a row less": lambda lines: lines[:-2] + lines[-1:],
    "a cell less": lambda lines: [*lines[:-1], lines[-1].rpartition(",")[0]],
    "no number": lambda lines: [*lines[:-1], lines[-1].rpartition(",")[0] + ",x"],
    "other columns": lambda lines: ["case,segment", *lines[1:]],
    "nothing": lambda lines: [],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("segmentation.csv", segmentation.read_maps),
        ("attributes.csv", attributes.read_attributes_table),
    ],
)
def test_damaged_tables_are_refused(run, tmp_path, name, read, damage):
    lines = (run.workdir / "evaluation" / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join(DAMAGE[damage](lines)))
    refused(lambda: read(tmp_path), f"{name}: is damaged")


def told(probability, true, known):
    cases = tuple(f"c{n}" for n in range(len(true)))
    names = tuple(segment.name for segment in COW19.segments)
    return attributes.Attributes(cases, names, probability, true, known)


def test_figures_of_attributes_by_hand():
    # Three people: complete; without PCoA R; without P1 L and ACoA.
    true = np.ones((3, 20), bool)
    for case, name in ((1, "PCoA R"), (2, "P1 L"), (2, "ACoA")):
        true[case, COW19.segment(name)] = False
    said = true.copy()
    said[1, COW19.segment("PCoA R")] = True  # missed
    said[0, COW19.segment("A1 L")] = False  # invented
    known = np.ones((3, 20), bool)
    known[2, COW19.segment("ACoA")] = False
    forks = COW19.landmark_attributes(said)
    forks[0, COW19.landmark("BA tip")] = False  # does not follow
    of = {
        "segment": told(np.where(said, 0.75, 0.25), true, known),
        "landmark": attributes.Attributes(
            ("c0", "c1", "c2"),
            COW19.landmarks,
            np.where(forks, 0.75, 0.25),
            COW19.landmark_attributes(true),
            np.ones((3, 19), bool),
        ),
    }
    found = attributes.figures(of, COW19)
    every, few = found["segments"]["all"], found["segments"]["may_change"]
    assert (every["n_true"], every["n_false"]) == (57, 2)
    assert every["accuracy"]["share"] == pytest.approx(57 / 59)
    assert every["sensitivity"]["share"] == pytest.approx(56 / 57)
    assert every["specificity"]["share"] == few["specificity"]["share"] == 1 / 2
    assert (few["n_true"], few["n_false"]) == (18, 2)
    assert few["balanced_accuracy"]["share"] == pytest.approx((17 / 18 + 1 / 2) / 2)
    row = found["segments"]["each"][COW19.segment("PCoA R")]
    assert row == {
        "name": "PCoA R",
        "may_change": True,
        "n_true": 2,
        "n_false": 1,
        "right_true": 2,
        "right_false": 0,
    }
    changing = int(COW19.may_change.sum())
    assert found["self_consistency"]["share"] == pytest.approx(1 - 1 / (3 * changing))
    # Wrong forks: two ends of the missed segment, two of the invented one, and the BA tip.
    assert found["landmarks"]["all"]["accuracy"]["share"] == pytest.approx(1 - 5 / 57)


def test_figures_of_maps_by_hand():
    nan = np.nan
    values = {
        "dice": [[0.5, 0.0, nan, 0.4], [1.0, 0.5, 0.0, 0.8]],
        "cldice": [[0.6, 0.0, nan, 0.5], [1.0, 0.7, 0.0, 0.9]],
        "betti0_error": [[1, 1, nan, 2], [0, 0, 3, 1]],
        # The second segment is not predicted in the first case; the third is invented.
        "volume_true_mm3": [[10, 20, 0, 30], [12, 22, 0, 34]],
        "volume_predicted_mm3": [[11, 0, 0, 11], [12, 20, 5, 37]],
    }
    maps = segmentation.Maps(
        ("x", "y"), ("a", "b", "c"), {k: np.array(v) for k, v in values.items()}
    )
    found = segmentation.figures(maps)
    assert (found["n_scans"], found["n_present"], found["n_invented"]) == (2, 4, 1)
    assert found["dice"]["mean"] == pytest.approx((0.5 + 0 + 1 + 0.5) / 4)
    assert found["dice"]["interval"] == pytest.approx([0.25, 0.75])
    assert found["betti0_error"]["mean"] == pytest.approx(2 / 4)
    assert found["tree"]["cldice"]["mean"] == pytest.approx(0.7)
    assert found["per_segment"][1] == {
        "name": "b",
        "n": 2,
        "dice": 0.25,
        "cldice": 0.35,
        "betti0_error": 0.5,
        "volume_true_mm3": 21.0,
        "volume_predicted_mm3": 10.0,
        "n_invented": 0,
    }
    never = found["per_segment"][2]
    assert (never["n"], never["dice"], never["n_invented"]) == (0, None, 1)
    json.dumps(found, allow_nan=False)


def test_comparison_has_what_rows_measured_of_segments(run, tmp_path):
    home = run.workdir
    # Another method, which finds nothing and says that all are there.
    other = tmp_path / "other"
    cases = list(run.prepared.cases.values())
    for case in cases:
        nothing = np.zeros(case.image().shape, np.uint8)
        write_segments(
            case.name,
            ScanSegments(
                SCHEME,
                case.segments.grid,
                np.full(3, 0.9),
                np.array(FORK),
                nothing,
                case.ijk_to_lps,
            ),
            other / "predictions",
        )
    table = "landmarks_subvoxel.csv"
    (other / "predictions" / table).write_bytes((home / "predictions" / table).read_bytes())
    worse = dataclasses.replace(run, workdir=other)
    workflow.evaluate(worse)
    rows = compare({"base": [other], "ours": [home]}, "base")
    text = as_text(rows)
    assert "Segments:" in text and "Dice, minus base:" in text
    maps = segmentation.read_maps(home / "evaluation")
    dice = np.nanmean(maps.of_present("dice"))
    assert rows[1].segment_tests["dice"]["difference"] == pytest.approx(dice)
    assert rows[1].segment_tests["segments_right"]["difference"] == pytest.approx(1 / 3)
    assert rows[1].segment_tests["bifurcations_right"]["difference"] == 0
    assert f"| ours | {100 * dice:.2f} | 100.00 | 100.00 | " in text
    assert "| base | 0.00 | 66.67 | 100.00 | 0.00 (0.00 to 0.00) | " in text
    write_comparison(rows, tmp_path, title="t", note="n")
    tree = read_json(tmp_path / "table.json", 1)["rows"]
    assert "segments_minus_first" not in tree[0]
    assert tree[1]["segments_minus_first"]["dice"]["n_scans"] == 3
    # A method that knows of no segments has an empty line, and is no first to compare with.
    plain = tmp_path / "plain" / "evaluation"
    plain.mkdir(parents=True)
    (plain / "points.csv").write_bytes((home / "evaluation" / "points.csv").read_bytes())
    summary = read_json(home / "evaluation" / "summary.json")
    del summary["segmentation"], summary["attributes"]
    (plain / "summary.json").write_text(json.dumps(summary))
    rows = compare({"base": [plain.parent], "ours": [home]}, "base")
    text = as_text(rows)
    assert "Dice, minus" not in text
    (line,) = (x for x in text.splitlines()[8:] if x.startswith("| base"))
    assert not any(letter.isdigit() for letter in line)
    assert f"| ours | {100 * dice:.2f} | " in text
    assert "Segments" not in as_text(rows[:1])
    # Another truth can't be compared with.
    lines = (home / "evaluation" / "attributes.csv").read_text()
    (other / "evaluation" / "attributes.csv").write_text(lines.replace(",no,", ",,"))
    refused(lambda: compare({"base": [other], "ours": [home]}, "base"), "other true segments")


def test_predictions_may_be_landmarks_of_another_cohort(run):
    notes = []
    folder = run.workdir / "predictions"
    _, people = read_unpaired(Data(unpaired=str(folder)), SCHEME.landmarks, notes)
    assert sorted(people) == sorted(run.prepared.cases)
    print("\n".join(notes))
    assert all(len(note) < 400 for note in notes)
