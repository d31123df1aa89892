"""Models of several folds as one: means by hand, in frames that differ."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmark.config import Augment, Data, Experiment, Predict
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.geometry import compose_affine
from jaxmark.data.chunks import Chunks
from jaxmark.data.frame import Frame, load_frame, save_frame
from jaxmark.data.frames import load_frames, prepare_in
from jaxmark.data.landmarks import read_landmarks, read_table
from jaxmark.data.scans import Scan, write_scan
from jaxmark.inference.calibration import Calibration
from jaxmark.inference.ensemble import Ensemble
from jaxmark.inference.model import UNTRAINED, TrainedModel
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import Task
from jaxmark.results.batch import predict_scans
from jaxmark.system.devices import data_mesh

NAMES = ("a", "b", "c")
CROP, SPACING = (16, 16, 12), (2.0, 2.0, 2.0)
# Where each member's grid begins.
CORNERS = ([-15.0, -15.0, -11.0], [-14.0, -16.0, -10.5], [-15.5, -14.0, -11.0])


def scan_of(seed: int) -> Scan:
    voxels = np.random.default_rng(seed).random((26, 24, 20), np.float32)
    return Scan(voxels, compose_affine(np.eye(3) * 1.5, np.array([-18.0, -17.0, -14.0])))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[TrainedModel]:
    """Networks that have learned nothing, each in a frame of its own."""
    method = HeatmapRegression(widths=(4, 8), steps=1)
    built = method.build(Task(scheme_of(NAMES), CROP, (0, 0, 0), SPACING, Augment()))
    predictor = Predictor(built, 2, data_mesh())
    init = jax.jit(built.init)
    known = Calibration(0.9, np.array([1e3, 0.1, np.inf]), None)
    found = []
    for number, corner in enumerate(CORNERS):
        frame = Frame(
            register="none",
            metric="correlation",
            search_degrees=180.0,
            template=None,
            common_to_template=np.eye(4),
            grid_to_common=compose_affine(np.diag(SPACING), np.array(corner)),
            shape=CROP,
            intensity="percentiles",
            intensity_range=(0.5, 99.5),
            # No training case of the first has it.
            untrained=("c",) * (number == 0),
        )
        folder = tmp_path_factory.mktemp("frame")
        save_frame(frame, NAMES, folder)
        experiment = Experiment(
            method=method,
            data=Data(crop=CROP, margin=0, spacing_mm=SPACING, workers=1),
            predict=Predict(batch=2, pictures=False),
        )
        variables = init(jax.random.key(number)).variables
        scheme = scheme_of(NAMES)
        found.append(
            TrainedModel(
                experiment, folder, load_frame(folder)[0], scheme, predictor, variables, known
            )
        )
    return found


def test_landmarks_are_the_mean_of_the_members(members: list[TrainedModel]) -> None:
    scan = scan_of(0)
    alone = [m.predict(scan.voxels, scan.ijk_to_lps, "LPS") for m in members]
    found = Ensemble.of(members).predict(scan.voxels, scan.ijk_to_lps, "LPS")
    positions = np.stack([one.positions_mm for one in alone])
    assert np.ptp(positions, axis=0).max() > 1
    expected = np.stack([*positions.mean(0)[:2], positions[1:, 2].mean(0)])
    np.testing.assert_allclose(found.positions_mm, expected, atol=1e-6)
    np.testing.assert_allclose(found.score, np.mean([one.score for one in alone], 0), rtol=1e-6)
    squares = ((positions - positions.mean(0)) ** 2).sum((0, 2)) / 2
    assert found.folds_sd_mm is not None
    np.testing.assert_allclose(found.folds_sd_mm[:2], np.sqrt(squares[:2]), atol=1e-6)
    of_two = ((positions[1:, 2] - expected[2]) ** 2).sum()
    np.testing.assert_allclose(found.folds_sd_mm[2], np.sqrt(of_two), atol=1e-6)
    # What one member has not learned the others know.
    assert alone[0].untrained == ("c",) and found.untrained == ()
    assert [one.folds_sd_mm for one in found] == found.folds_sd_mm.tolist()


def test_members_that_disagree_are_doubted(members: list[TrainedModel]) -> None:
    scan = scan_of(0)
    found = Ensemble.of(members).predict(scan.voxels, scan.ijk_to_lps, "LPS")
    assert found.folds_sd_mm is not None
    (line,) = [doubt for doubt in found.doubts if "disagree" in doubt]
    sd = f"standard deviation {found.folds_sd_mm[1]:.1f} mm, radius 0.1 mm"
    assert line == f"b: the folds' models disagree by more than the stated radius (most: b, {sd})"
    same = Ensemble.of([members[1], members[1]]).predict(scan.voxels, scan.ijk_to_lps, "LPS")
    assert same.folds_sd_mm is not None and (same.folds_sd_mm < 1e-6).all()
    assert not any("disagree" in doubt for doubt in same.doubts)


def test_what_no_member_has_learned_stays_hidden(members: list[TrainedModel]) -> None:
    scan = scan_of(0)
    found = Ensemble.of([members[0], members[0]]).predict(scan.voxels, scan.ijk_to_lps, "LPS")
    assert found.why_hidden()["c"] == UNTRAINED


def test_a_batch_is_what_single_scans_are(members: list[TrainedModel], tmp_path: Path) -> None:
    ensemble, sources = Ensemble.of(members), {}
    for number in range(5):
        scan, sources[f"s{number}"] = scan_of(number), tmp_path / f"s{number}.nrrd"
        write_scan(sources[f"s{number}"], scan.voxels, scan.ijk_to_lps)
    outcome = predict_scans(ensemble, sources, tmp_path / "out")
    assert outcome.written == 5 and not outcome.failures
    for name, path in sources.items():
        found, single = (
            read_landmarks(tmp_path / "out" / f"{name}.mrk.json"),
            ensemble.predict(path),
        )
        for landmark, position in single.points().items():
            np.testing.assert_allclose(found[landmark], position, atol=1e-4)
    table = tmp_path / "out" / "batch" / "landmarks.csv"
    assert "radius_mm,folds_sd_mm,hidden" in table.read_text("utf-8").splitlines()[0]
    assert len(read_table(table)) == 5
    assert predict_scans(ensemble, sources, tmp_path / "out").skipped == 5
    # Another member is another model.
    other = Ensemble.of([*members[:2], members[1]])
    assert predict_scans(other, sources, tmp_path / "out").written == 5


def test_frames_with_one_template_are_aligned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = scan_of(0)
    frame = Frame(
        register="center",
        metric="correlation",
        search_degrees=180.0,
        template=scan_of(1),
        common_to_template=np.eye(4),
        grid_to_common=compose_affine(np.diag(SPACING), np.array(CORNERS[0])),
        shape=CROP,
        intensity="percentiles",
        intensity_range=(0.5, 99.5),
    )
    moved = compose_affine(np.diag(SPACING), np.array(CORNERS[1]))
    variants = [
        frame,
        dataclasses.replace(frame, grid_to_common=moved),
        frame,
        dataclasses.replace(frame, template=scan_of(2)),
    ]
    for number, one in enumerate(variants):
        save_frame(one, NAMES, tmp_path / str(number))
    frames = load_frames([tmp_path / str(number) for number in range(4)])
    alone = [load_frame(tmp_path / str(number))[0].prepare(scan) for number in range(4)]
    aligned = []
    real = Frame.align
    monkeypatch.setattr(Frame, "align", lambda f, s: aligned.append(f) or real(f, s))
    prepared = prepare_in(frames, scan)
    assert len(aligned) == 2 and prepared[0] is prepared[2]
    for one, expected in zip(prepared, alone, strict=True):
        np.testing.assert_array_equal(one.image, expected.image)
        np.testing.assert_array_equal(one.ijk_to_lps, expected.ijk_to_lps)
    assert not np.array_equal(prepared[0].image, prepared[3].image)


def test_images_in_chunks_have_a_folder_each(tmp_path: Path) -> None:
    scan = scan_of(0)
    frames = [
        Frame(
            register="none",
            metric="correlation",
            search_degrees=180.0,
            template=None,
            common_to_template=np.eye(4),
            grid_to_common=compose_affine(np.diag(SPACING), np.array(corner)),
            shape=CROP,
            intensity="window",
            intensity_range=(0.0, 1.0),
            chunks=chunks,
        )
        for chunks in (Chunks(4), None)
        for corner in CORNERS[:2]
    ]
    stored, plain = prepare_in(frames[:2], scan, tmp_path), prepare_in(frames[2:], scan)
    for one, expected in zip(stored, plain, strict=True):
        np.testing.assert_array_equal(one.volume("s").image(), expected.image)
    for one in stored:
        one.discard()
    assert list(tmp_path.iterdir()) == []
