"""All methods in one table: rows as configs, what the figures come to in words, costs of a run."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from experiments import atlases, compare, costs
from experiments.atlases import Atlases
from experiments.compare import METHODS, SIZES, Measured, get_config
from experiments.costs import Costs
from jaxmark.config import validate
from jaxmark.core.metrics import holm, smallest_p_value
from jaxmark.results.compare import Pair, Row, pairs, pairs_table
from jaxmark.workflow import run_stages

PRESETS = [(size, row) for row, sizes in METHODS.items() for size in SIZES if size in sizes]


@pytest.mark.parametrize(("size", "row"), PRESETS)
def test_every_row_is_a_valid_experiment_on_the_same_cohort(size: str, row: str) -> None:
    experiment, other = validate(get_config(f"{size}/{row}")), SIZES[size]()
    assert experiment.phantom == other.phantom
    for field in ("root", "val_fraction", "test_fraction", "split_seed", "train_fraction"):
        assert getattr(experiment.data, field) == getattr(other.data, field)
    # A command line that changes this row leaves the others alone.
    experiment.method = None
    assert get_config(f"{size}/{row}").method is not None


def test_a_row_that_is_not_for_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="row Multitask is not for mouse"):
        get_config("mouse/Multitask")
    with pytest.raises(ValueError, match="there is no preset"):
        get_config("small/Cardiac")


def row(label: str, error_mm: float, seed: int = 0, scans: int = 8) -> Row:
    """A method whose error is about this in every point."""
    errors = error_mm + np.random.default_rng(seed).normal(0, 0.05, (scans, 3))
    summary = {
        **{"mre_mm": float(errors.mean()), "median_mm": error_mm, "n_scans": scans},
        **{f"sd_{of}_mm": 0.1 for of in ("points", "scans", "landmarks")},
        **{"sdr": {"2": 0.5}, "confusion_rate": 0.0, "n_points": errors.size},
    }
    return Row(label, summary, 1, None, errors, np.zeros((scans, 3)))


def measured(label: str, error_mm: float, seed: int = 0, **figures: object) -> Measured:
    usual = Costs(1000, 10.0, (0.1,), 10**8, 5.0, ((1.0, 4.0), (5.0, 2.0)))
    return Measured(row(label, error_mm, seed), dataclasses.replace(usual, **figures))


def test_few_scans_cannot_tell_rows_apart_and_the_page_says_so() -> None:
    assert smallest_p_value(4) == 0.125
    # The test gives no less, however much better a row is.
    few = row("Heatmaps", 1.0, scans=4), row("Cascade", 9.0, seed=1, scans=4)
    assert pairs(few)[0].p_value == 0.125
    rows = [Measured(one, measured(one.label, 1.0).costs) for one in few]
    lines = compare.words(rows, pairs(few), 2.5, "mm")
    assert lines[1].startswith("4 scans are too few for a test of 1 pairs")
    assert not any("Not shown" in line for line in lines)


def test_holm_adjusts_for_the_number_of_tests() -> None:
    # By hand: 0.01 * 3, then the larger of that and 0.02 * 2, then of that and 0.04 * 1.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_all_pairs_are_tested_and_shown_both_ways() -> None:
    rows = [row("a", 1.0), row("b", 2.0, 1), row("c", 1.0, 2)]
    found = pairs(rows)
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[0].difference == pytest.approx(-1, abs=0.05)
    assert found[0].p_value == pytest.approx(3 * 0.0078125)
    assert found[1].p_value > 0.05
    _, _, head, lines = pairs_table(found, ["a", "b", "c"], "mm")
    assert head == ["", "a", "b", "c"]
    assert lines[0][1] == "" and lines[0][2].startswith("−1.0") and lines[1][1].startswith("1.0")
    # One scan says nothing of others.
    assert pairs([row("a", 1.0, scans=1), row("b", 2.0, scans=1)]) == []


def test_words_follow_from_the_figures() -> None:
    rows = [
        measured("Heatmaps", 2.0, step_s=(0.2,), minutes=20.0, step_bytes=10**9),
        measured("Cascade", 2.0, 1, volumes_per_s=9.0),
        measured("Payer", 3.0, 2, validations=((0.5, 9.0),)),
        measured("Atlases", 5.0, 3, step_s=(), minutes=0.0, step_bytes=None, validations=()),
    ]
    lines = compare.words(rows, pairs([one.row for one in rows]), 2.5, "mm")
    best, other = sorted(rows[:2], key=lambda one: one.row.summary["mre_mm"])
    mre_mm = best.row.summary["mre_mm"]
    assert lines[0] == f"Smallest error: {best.row.label} ({mre_mm:.2f} mm)."
    assert lines[1].endswith(f": {other.row.label} ({other.row.summary['mre_mm']:.2f} mm).")
    assert "least training: Cascade (10.0 minutes" in lines[2]
    assert "least memory: Cascade (100 MB" in lines[2]
    assert "fastest prediction: Cascade (9 volumes/s)" in lines[2]
    assert lines[3].startswith("First at 2.5 mm on validation cases: Heatmaps, after 5.0 minutes")
    assert lines[4].startswith("Without any training: Atlases (5.0")


def test_the_csv_holds_what_the_tables_do() -> None:
    rows = [measured("a", 2.0), measured("b", 3.0, 1, step_s=(), step_bytes=None, validations=())]
    first, second = csv.DictReader(io.StringIO(compare.as_csv(rows, 2.5)))
    assert first["row"] == "a" and first["minutes_to_2.5_mm"] == "5" and first["step_s"] == "0.1000"
    assert second["minutes_to_2.5_mm"] == second["step_bytes"] == second["radii_held"] == ""
    *_, line = compare.costs_table(rows, 2.5, "mm")[3]
    assert line == ["b", "1,000", "–", "–", "–", "–", "5"]
    assert compare.promises_table(rows, "mm")[3][0][-2:] == ["–", "–"]


def test_pairs_need_adjusted_values_only() -> None:
    table = pairs_table([Pair("a", "b", 0.5, [0.1, 0.9], 0.2)], ["a", "b"], "px")
    assert "px" in table[1] and table[3] == [["a", "", "0.50 (0.200)"], ["b", "−0.50 (0.200)", ""]]


def test_costs_are_measured_once(tmp_path: Path) -> None:
    experiment = get_config("tiny/Cascade")
    # The tests' devices are two.
    experiment.train.batch = experiment.method.refine_batch = 2
    run = run_stages(experiment, tmp_path / "run", ("prepare", "train", "predict"))
    found = costs.of_run(run)
    assert found.parameters > 1000 and len(found.step_s) == 2 and min(found.step_s) > 0
    steps = [phase.steps for phase in run.method.phases]
    assert found.minutes == pytest.approx(np.dot(steps, found.step_s) / 60)
    # A step holds its weights and Adam's two moments at least.
    assert found.step_bytes > 12 * found.parameters and found.volumes_per_s > 0
    # Validations are at the end of each phase here.
    assert [minutes for minutes, _ in found.validations][-1] == pytest.approx(found.minutes)
    assert found.minutes_to(1e9) == found.validations[0][0] and found.minutes_to(0) is None
    assert costs.of_run(run) == found
    (tmp_path / "run" / costs.FILE).write_text("{")
    refused(lambda: costs.of_run(run), tmp_path / "run" / costs.FILE, "is not JSON")


def blob(moved: float) -> np.ndarray:
    """A volume with three Gaussians, moved along x."""
    place = np.stack(np.meshgrid(*(np.arange(28.0),) * 3, indexing="ij"), -1)
    places = np.array([[8, 9, 10], [19, 12, 15], [12, 20, 18]]) + [moved, 0, 0]
    return sum(np.exp(-(((place - p) / 3) ** 2).sum(-1)) for p in places)  # type: ignore[return-value]


def test_an_atlas_is_bent_onto_a_scan() -> None:
    bend = atlases.fitted(blob(0), blob(2), (1.5, 1.5, 1.5), Atlases(mesh_mm=15.0))
    at_mm = 1.5 * np.array([19.0, 12, 15])
    moved = np.array(bend.TransformPoint(at_mm.tolist())) - at_mm
    np.testing.assert_allclose(moved, [3, 0, 0], atol=0.6)


def test_the_consensus_passes_over_what_an_atlas_lacks() -> None:
    places = np.full((3, 3, 3), np.nan)
    places[:, 0] = [[0, 0, 0], [1, 0, 0], [9, 0, 0]]
    places[1, 1] = [4, 4, 4]
    middle, spread_mm = atlases.consensus(places, (2, 2, 2))
    np.testing.assert_allclose(middle, [[1, 0, 0], [4, 4, 4], [2.5, 2, 2]])
    np.testing.assert_allclose(spread_mm, [2 * np.sqrt(65 / 3), 0, 0])
