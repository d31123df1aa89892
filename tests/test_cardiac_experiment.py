"""The cardiac GAN's experiment: presets, what rows share, and the blind test on other people."""

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
from running import ROOT

from experiments import cardiac_gan, cardiac_table
from jaxmark.config import to_json, validate
from jaxmark.core import metrics
from jaxmark.data.landmarks import read_table
from jaxmark.data.phantoms.cine.cohort import VIEWS
from jaxmark.methods.method import Task
from jaxmark.results.compare import Row as Compared
from jaxmark.results.measures.points import read_points
from jaxmark.workflow import run_stages

PRESETS = [
    f"{s}/{n}/{r}" for s in cardiac_gan.SIZES for n in cardiac_gan.SETS for r in cardiac_gan.ROWS
]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_experiment_that_fits_its_slices(preset):
    experiment = validate(cardiac_gan.get_config(preset))
    data, phantom = experiment.data, experiment.phantom
    assert phantom.scheme.landmarks == VIEWS[preset.split("/")[1]].landmarks
    task = Task(
        scheme=phantom.scheme,
        crop=data.crop,
        margin=data.margins,
        spacing_mm=data.spacing_mm,
        augment=experiment.augment,
    )
    assert experiment.method.build(task).phases


@pytest.mark.parametrize("size", cardiac_gan.SIZES)
def test_rows_share_all_but_the_method(size):
    trees = [to_json(cardiac_gan.get_config(f"{size}/MV/{row}")) for row in cardiac_gan.ROWS]
    for part in ("data", "phantom", "augment", "train", "evaluate", "seed"):
        assert trees[0][part] == trees[1][part] == trees[2][part]
    full, plain, heatmap = (tree["method"] for tree in trees)
    assert {k for k in full if full[k] != plain[k]} == {"foreground"}
    assert heatmap["steps"] == full["steps"]


def test_the_paper_s_numbers_of_slices_and_epochs():
    for name, slices in (("ACA", 80), ("BCA", 80), ("MV", 5142), ("RVI", 542)):
        phantom = cardiac_gan.get_config(f"paper/{name}/GAN").phantom
        made = phantom.frames * (phantom.train + phantom.val + phantom.test)
        assert 0.75 < slices / made < 1.05
    # 1000 epochs of 56 people with 6 slices each, 8 a step.
    assert cardiac_gan.get_config("paper/RVI/GAN").method.steps == 42_000


@pytest.mark.parametrize("preset", ["", "small", "small/RVI", "huge/RVI/GAN", "small/LV/GAN"])
def test_other_presets_are_refused(preset):
    with pytest.raises(ValueError, match="there is no preset"):
        cardiac_gan.get_config(preset)


def compared(label, error, cases):
    points = error.size
    summary = {"mre_mm": error.mean(), "sd_points_mm": error.std(), "n_scans": float(len(error))}
    summary["sdr"] = {f"{t:g}": float((error <= t).sum() / points) for t in (2, 3, 5)}
    return Compared(label, summary, 1, None, error, np.zeros_like(error), cases=cases)


def test_intervals_are_over_people_not_over_frames():
    rng = np.random.default_rng(2)
    people = rng.normal(0.3, 1.0, 12)
    cases = [f"patient-{p:03d}-frame-{f:02d}" for p in range(12) for f in range(8)]
    base = np.abs(rng.normal(3, 0.5, (96, 2))) + 3
    other = base + np.repeat(people, 8)[:, None]
    rows = [compared("GAN", base, cases), compared("heatmap", other, cases)]
    assert cardiac_table.over_people(rows[0], rows[0]) is None
    found = cardiac_table.over_people(rows[1], rows[0])
    assert found["n_scans"] == 12
    assert found["difference"] == pytest.approx(people.mean())
    drawn = people[rng.integers(0, 12, (20_000, 12))].mean(1)
    assert found["interval"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.05)
    by_slice = metrics.paired_comparison(other, base, 0)["interval"]
    assert found["interval"][1] - found["interval"][0] > 2 * (by_slice[1] - by_slice[0])


def test_lines_have_the_paper_s_figures_beside_its_own_method_alone():
    error = np.full((4, 2), 2.5)
    cases = [f"patient-{p:03d}-frame-00" for p in range(4)]
    rows = [compared("GAN", error, cases), compared("heatmap", error + 1, cases)]
    first, second = cardiac_table.lines_of("RVI", "own", rows, published=True)
    assert len(first) == len(second) == len(cardiac_table.HEAD)
    assert first[:9] == ["RVI", "own", "GAN", 4, "2.5", "0", "0", "100", "100"]
    assert first[9:] == [""] * 4 + [2.8, 1.5, 72.0, 86.0, 96.0]
    assert second[9] == "1" and second[13:] == [""] * 5
    blind = cardiac_table.lines_of("RVI", "blind", rows, published=False)
    assert blind[0][13:] == [""] * 5


def test_the_blind_test_is_of_the_other_scanner_s_people(tmp_path):
    experiment = cardiac_gan.get_config("tiny/RVI/GAN")
    experiment.data.cache, experiment.data.workers = str(tmp_path / "cache"), 1
    home = tmp_path / "run"
    run_stages(experiment, home)
    folder = cardiac_table.blind_test(home, experiment, tmp_path / "B")
    told = json.loads((tmp_path / "B" / "phantom.json").read_text())["phantom"]
    assert (told["scanner"], told["view"], told["test"]) == ("B", "RVI", 2)
    points = read_points(folder / "evaluation")
    assert points.unit == "px" and points.landmarks == ("RVI anterior", "RVI inferior")
    assert len(points.cases) == 4
    # The truth is in pixels of each slice: millimetres by its pixel size.
    case = points.cases[1]
    table = read_table(tmp_path / "B" / "landmarks" / f"{case}.csv")[case]
    mm = np.array([table[name][:2] for name in points.landmarks])
    spacing = sitk.ReadImage(str(tmp_path / "B" / "images" / f"{case}.nii.gz")).GetSpacing()
    np.testing.assert_allclose(points.truth_mm[1, :, :2] * spacing[:2], mm, atol=1e-3)
    before = (folder / "evaluation/points.csv").read_bytes()
    (tmp_path / "B" / "splits.json").unlink()
    assert cardiac_table.blind_test(home, experiment, tmp_path / "B") == folder  # done before
    assert (folder / "evaluation/points.csv").read_bytes() == before


def test_the_table_s_file_is_where_its_rows_point(tmp_path):
    (row,) = cardiac_table.rows_of("tiny", "MV", ["heatmap"], ["3"], tmp_path)
    file, preset = row.config.split(":")
    assert (ROOT / file).exists()
    assert dataclasses.asdict(cardiac_gan.get_config(preset)) == dataclasses.asdict(
        cardiac_gan.get_config("tiny/MV/heatmap")
    )
    assert row.homes == {"3": tmp_path / "heatmap-3"}
