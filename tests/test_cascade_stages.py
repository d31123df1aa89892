"""Stage 1 against stage 2: figures of both, a picture of one case, and words for what cannot be."""

import os
import subprocess
import sys

import numpy as np
import pytest
from running import QUICK, ROOT, jaxmark

from experiments import cascade_stages
from jaxmark.data.cases import PreparedCase, save_case
from jaxmark.results.figures.style import MARK, PREDICTION, TRUTH
from jaxmark.system.errors import InputError


def test_a_picture_shows_some_landmarks_and_skips_what_is_absent(tmp_path):
    image = np.random.default_rng(0).random((20, 18, 12)).astype(np.float16)
    truth = np.random.default_rng(1).uniform(0, 12, (1, 8, 3))
    case = PreparedCase(
        name="c0",
        folder=tmp_path / "c0",
        ijk_to_lps=np.eye(4),
        landmarks_mm=truth[0],
        present=np.ones(8, bool),
        absent=np.zeros(8, bool),
    )
    save_case(case, image, tmp_path)
    # Far outside of the volume, too.
    places = {TRUTH: truth[0], MARK: truth[0] + [100, 0, 0], PREDICTION: truth[0] + [0, 1, 0]}
    first = np.where(np.arange(8) == 2, np.nan, np.arange(8.0))
    names = tuple("abcdefgh")
    picture = cascade_stages.draw(case, places, [first, first / 2], names, (1.0, 1.0, 2.0), 8)
    assert picture.startswith(b"\x89PNG")
    few = cascade_stages.MOST_COLUMNS
    shown = cascade_stages.shown_landmarks(first)
    assert len(shown) == few and 2 not in shown and shown == sorted(shown)
    assert {0, 7} < set(shown)
    assert int.from_bytes(picture[16:20], "big") == 240 * few


def test_the_case_with_the_median_error_is_shown():
    errors = np.array([[3.0, 3.0], [np.nan, np.nan], [1.0, np.nan], [2.0, 2.0]])
    names = ["a", "b", "c", "d"]
    assert cascade_stages.chosen_case(names, errors, "") == 3
    assert cascade_stages.chosen_case(names, errors, "c") == 2
    for wanted in ("b", "e"):
        with pytest.raises(InputError, match=f"--case: '{wanted}' is not one with landmarks: a, c"):
            cascade_stages.chosen_case(names, errors, wanted)


def test_the_final_place_is_compared_with_each_of_the_first_stage():
    rng = np.random.default_rng(0)
    first = rng.uniform(2, 3, (6, 4))
    text = cascade_stages.as_text({"final": first - 1, "stage1": first}, "final")
    lines = text.splitlines()
    assert lines[2].startswith(f"| final | {np.mean(first) - 1:.3f} |")
    assert lines[3].endswith("| -1.000 (-1.000 to -1.000) |")


@pytest.mark.slow
def test_the_command_reads_a_work_dir(tmp_path):
    # One device, whatever the tests have.
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def call(*arguments):
        command = [sys.executable, "-m", "experiments.cascade_stages", *arguments]
        variables = {**inherited, "XLA_FLAGS": QUICK}
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", cwd=ROOT, env=variables
        )

    home = tmp_path / "run"
    result = call(f"--workdir={home}")
    assert result.returncode == 1 and result.stderr.startswith(f"error: {home}: holds no trained")
    config = "--config=experiments/vessel_cascade.py:tiny"
    result = jaxmark(config, f"--workdir={home}")
    assert result.returncode == 0, result.stderr
    output = tmp_path / "stages.png"
    result = call(f"--workdir={home}", f"--output={output}", "--looks=2")
    assert result.returncode == 0, result.stderr
    for name in ("stage1_subvoxel", "stage2, 1 look", "stage2, 2 looks"):
        assert f"| {name} |" in result.stdout
    assert output.read_bytes().startswith(b"\x89PNG")
    result = call(f"--workdir={home}", "--case=nobody")
    assert (
        result.returncode == 1
        and "error: --case: 'nobody' is not one with landmarks" in result.stderr
    )
