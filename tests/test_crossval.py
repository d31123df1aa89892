"""Cross-validation by the command line: real processes, killed, continued and side by side."""

import csv
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import refused
from jax.sharding import Mesh
from running import TINY, Process, jaxmark_copies, wait_for

from jaxmark import trained
from jaxmark.config import Experiment
from jaxmark.core.calibration import conformal_radius
from jaxmark.crossval import cross_validate
from jaxmark.data.landmarks import read_landmarks
from jaxmark.inference.ensemble import Ensemble
from jaxmark.results.measures.points import read_floor_errors, read_points
from jaxmark.training.checkpoints import Checkpoints
from jaxmark.training.records import METRICS
from jaxmark.workflow import load_model

STEPS = 12
# Out of fold there are 8 cases, enough for radii of two landmarks in three.
SETTINGS = (
    TINY,
    "--mode=crossval",
    "--folds=2",
    f"--config.method.steps={STEPS}",
    "--config.data.workers=1",
    "--config.phantom.train=7",
    "--config.predict.coverage=0.7",
)


def start(folder: Path, name: str, work: Path) -> Process:
    return Process(
        folder, name, *SETTINGS, f"--workdir={work}", f"--config.data.cache={folder / 'cache'}"
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation that nothing happened to, beside the cache that it filled."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, "whole", folder / "work")
    assert process.wait() == 0, process.lines()
    said = process.out.read_text("utf-8")
    assert "fold 2 of 2 (config.data.fold=1): " in said and "ensemble on the test cases: " in said
    return folder / "work"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_case_is_predicted_by_a_model_that_has_not_seen_it(whole: Path) -> None:
    points = read_points(whole / "evaluation")
    assert len(points.cases) == 8 and list(points.cases) == sorted(points.cases)
    fold_of = {row["case"]: int(row["fold"]) for row in rows(whole / "evaluation" / "folds.csv")}
    assert list(fold_of) == list(points.cases)
    for fold in range(2):
        table = rows(whole / "folds" / str(fold) / "preparation" / "cases.csv")
        splits = {row["case"]: row["split"] for row in table}
        assert all((splits[case] == "val") == (own == fold) for case, own in fold_of.items())
        # The model of the last step, whichever was best.
        observed = json.loads((whole / f"folds/{fold}/calibration.json").read_text("utf-8"))
        assert observed["step"] == STEPS
        for case, errors in zip(observed["cases"], observed["error_mm"]["subvoxel"], strict=True):
            found = points.error_mm()[points.cases.index(case)]
            np.testing.assert_allclose(found, np.array(errors, float), rtol=1e-6)
    for case, row in zip(points.cases, points.predicted_mm, strict=True):
        written = read_landmarks(whole / "predictions" / f"{case}.mrk.json")
        np.testing.assert_allclose(np.array([*written.values()], float), row, atol=1e-6)


def test_promises_come_from_the_other_folds(whole: Path) -> None:
    points = read_points(whole / "evaluation")
    fold_of = {row["case"]: int(row["fold"]) for row in rows(whole / "evaluation" / "folds.csv")}
    pooled = json.loads((whole / "calibration.json").read_text("utf-8"))
    assert sorted(pooled["cases"]) == list(points.cases)
    errors = np.array(pooled["error_mm"]["argmax"], float)
    # Spread makes radii of "subvoxel" and "argmax" alike differ from case to case; their factors
    # are compared by what does not: no radius where the other fold is too small for it.
    other = [fold_of[case] == 1 for case in pooled["cases"]]
    enough = np.isfinite(conformal_radius(errors[other], 0.7))
    stated = np.isfinite(points.radius_mm[[fold_of[case] == 0 for case in points.cases]])
    assert enough.any() and (stated[:, enough]).all()
    summary = json.loads((whole / "evaluation" / "summary.json").read_text("utf-8"))
    assert summary["coverage"]["nominal"] == 0.7


def test_figures_of_folds_and_of_the_ensemble(whole: Path) -> None:
    points = read_points(whole / "evaluation")
    summary = json.loads((whole / "evaluation" / "summary.json").read_text("utf-8"))
    errors = points.error_mm()
    assert np.isclose(summary["mre_mm"], np.nanmean(errors))
    fold_of = {row["case"]: int(row["fold"]) for row in rows(whole / "evaluation" / "folds.csv")}
    own = [[fold_of[case] == fold for case in points.cases] for fold in range(2)]
    means = [np.nanmean(errors[some]) for some in own]
    np.testing.assert_allclose([row["mre_mm"] for row in summary["folds"]["rows"]], means)
    assert np.isclose(summary["folds"]["sd_mm"], np.std(means, ddof=1))
    # The floor of a case is the mean of the cases that its model was trained on.
    floor = read_floor_errors(whole / "evaluation")["mean_position"]
    for some in own:
        mean = np.nanmean(points.truth_mm[np.logical_not(some)], axis=0)
        expected = np.linalg.norm(points.truth_mm[some] - mean, axis=-1)
        np.testing.assert_allclose(floor[some], expected, rtol=1e-6)
    on_test = json.loads((whole / "test" / "evaluation" / "summary.json").read_text("utf-8"))
    found = summary["ensemble"]
    assert found["mre_mm"] == on_test["mre_mm"] and found["n_scans"] == on_test["n_scans"] == 2
    assert np.isclose(np.mean(found["folds_mre_mm"]), found["mean_of_folds_mm"])
    difference = found["mre_mm"] - found["mean_of_folds_mm"]
    assert np.isclose(found["minus_mean_of_folds"]["difference"], difference) and difference < 0
    page = (whole / "report" / "index.html").read_text("utf-8")
    for words in ("<h2>Folds</h2>", "Training of fold 1", "The ensemble on the test cases"):
        assert words in page


def test_killed_and_continued_by_two_processes_it_ends_in_the_same_bits(
    whole: Path, tmp_path: Path
) -> None:
    folder, work = whole.parent, tmp_path / "work"
    process = start(folder, "killed", work)
    wait_for(lambda: (work / "folds/0/checkpoints/3").exists(), process)
    process.popen.send_signal(signal.SIGKILL)
    process.wait()
    assert not (work / "calibration.json").exists()
    refused(lambda: load_model(work), "holds a cross-validation that is not complete: continue it")

    both = [start(folder, f"side {number}", work) for number in range(2)]
    assert [one.wait() for one in both] == [0, 0], [one.lines() for one in both]
    said = [one.out.read_text("utf-8") for one in both]
    # One of them, or both where they ended together, has written the page.
    assert any("report: " in text for text in said)
    for name in ("calibration.json", "evaluation/points.csv", "evaluation/summary.json"):
        assert (work / name).read_bytes() == (whole / name).read_bytes(), name
    for fold in map(str, range(2)):
        ours, theirs = (at / "folds" / fold for at in (work, whole))
        assert Checkpoints(ours).meta(STEPS) == Checkpoints(theirs).meta(STEPS)
        assert (ours / METRICS).read_bytes() == (theirs / METRICS).read_bytes()


def test_scans_are_predicted_by_all_folds(whole: Path, tmp_path: Path) -> None:
    scan = next((whole.parent / "cache").glob("phantom-*/images/phantom-008.nii.gz"))
    shutil.copy(scan, tmp_path / "scan.nii.gz")
    given = [f"--input={tmp_path / 'scan.nii.gz'}", "--nohuge_pages"]
    predict = ["--mode=predict", *given]
    packed = tmp_path / "model.zip"
    done = jaxmark_copies(
        [
            [*predict, f"--checkpoint={whole}", f"--output={tmp_path / 'out'}"],
            ["--mode=pack", f"--checkpoint={whole}", f"--output={packed}", "--nohuge_pages"],
            [*predict, f"--checkpoint={packed}", f"--output={tmp_path / 'again'}"],
            [
                *predict,
                f"--checkpoint={whole}",
                f"--output={tmp_path / 'no'}",
                "--config.predict.checkpoint=best",
            ],
            [TINY, f"--workdir={whole}", "--nohuge_pages"],
        ]
    )
    assert [one.returncode for one in done] == [0, 0, 0, 1, 1], [one.stderr for one in done]
    assert "config.predict.checkpoint: 'best' was chosen by the cases" in done[3].stderr
    assert "holds a cross-validation (--mode=crossval); use another" in done[4].stderr

    model = load_model(whole)
    assert isinstance(model, Ensemble) and len(model.members) == 2
    alone = [member.predict(scan).positions_mm for member in model.members]
    found = model.predict(scan)
    np.testing.assert_allclose(found.positions_mm, np.mean(alone, axis=0), atol=1e-4)
    for folder in ("out", "again"):
        written = read_landmarks(tmp_path / folder / "scan.mrk.json")
        positions = np.array([*written.values()], float)
        np.testing.assert_allclose(positions, found.positions_mm, atol=1e-3)
    # A test case of the cohort: the prepared one says the same.
    of_test = read_landmarks(whole / "test" / "predictions" / "phantom-008.mrk.json")
    assert [*of_test] == [*written]
    np.testing.assert_allclose(np.array([*of_test.values()], float), positions, atol=1e-3)


def test_graphs_that_hold_weights_are_of_one_fold_alone(whole: Path) -> None:
    pytest.importorskip("openvino")
    scan = next((whole.parent / "cache").glob("phantom-*/images/phantom-008.nii.gz"))
    experiment = trained.get_config(str(whole))
    experiment.predict.engine = "openvino"
    one_device = Mesh(np.array(jax.devices()[:1]), ("data",))
    model, by_xla = load_model(whole, experiment, one_device), load_model(whole)
    assert isinstance(model, Ensemble) and isinstance(by_xla, Ensemble)
    assert by_xla.members[0].predictor is by_xla.members[1].predictor
    found, expected = model.predict(scan), by_xla.predict(scan)
    np.testing.assert_allclose(found.positions_mm, expected.positions_mm, atol=0.05)
    np.testing.assert_allclose(found.folds_sd_mm, expected.folds_sd_mm, atol=0.05)
    assert expected.folds_sd_mm.max() > 1


@pytest.fixture
def experiment(whole: Path) -> Experiment:
    """Of fold 0, as it is stored."""
    return trained.get_config(str(whole))


def test_what_no_cross_validation_is(whole: Path, experiment: Experiment, tmp_path: Path) -> None:
    refused(lambda: cross_validate(experiment, whole, 3), "--folds: is 3, config.data.folds 2")
    experiment.data.folds = 0
    refused(lambda: cross_validate(experiment, tmp_path, 0), "--folds: 0 is no cross-validation")
    refused(lambda: cross_validate(experiment, tmp_path, 1), "config.data.folds: 1 leaves no")
    of_one = whole / "folds" / "0"
    refused(lambda: cross_validate(experiment, of_one, 2), of_one, "holds a run of its own")
    refused(lambda: cross_validate(experiment, whole, 5), "config.data.folds = 2, not 5")
    experiment.data.fold = 1
    refused(lambda: cross_validate(experiment, whole, 2), "config.data.fold: is for a fold alone")
