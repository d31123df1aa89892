"""What keeps a detector away from the truth, where the answer is known."""

import numpy as np
import pytest

from experiments import few_scans
from experiments.few_scans import asymmetry, limits, symmetric_partners, ways_table
from jaxmark.config import validate
from jaxmark.core.geometry import apply_affine, compose_affine, spread_rotations

rng = np.random.default_rng(0)
# Ten pairs left and right of the plane x = 0, and three points on it.
RIGHT = rng.uniform([2, -10, -10], [10, 10, 10], (10, 3))
MIDDLE = np.array([[0, 0, 9.0], [0, 8, -3], [0, -9, 2]])
HEAD = np.concatenate([RIGHT, RIGHT * [-1, 1, 1], MIDDLE])
TWINS = np.array([*range(10, 20), *range(10), 20, 21, 22])


def heads(noise_mm: float, count: int = 12) -> np.ndarray:
    """Heads in any pose, each point off by this along each axis."""
    turns = spread_rotations(count)
    return np.stack(
        [
            apply_affine(compose_affine(turn, rng.normal(0, 20, 3)), HEAD)
            + rng.normal(0, noise_mm, HEAD.shape)
            for turn in turns
        ]
    )


@pytest.mark.parametrize("row", few_scans.ROWS)
def test_rows_are_valid_and_differ_in_steps_or_heads(row: str) -> None:
    experiment = validate(few_scans.get_config(f"mouse/{row}"))
    steps, share = few_scans.ROWS[row]
    assert experiment.method.refine_steps == steps and experiment.data.train_fraction == share
    assert experiment.method.shifted == 0


def test_twins_are_found_in_any_pose() -> None:
    np.testing.assert_array_equal(symmetric_partners(heads(0.05)), TWINS)


def test_asymmetry_is_the_noise_of_a_point() -> None:
    # Of three axes; a rigid fit takes a little of it away.
    assert asymmetry(heads(0.2, 40)) == pytest.approx(0.2 * np.sqrt(3), rel=0.1)


def test_an_asymmetry_that_all_heads_have_is_not_noise() -> None:
    shapes = np.stack([HEAD + np.eye(3)[0] * (np.arange(23) == 4)[:, None]] * 6)
    assert asymmetry(shapes) == pytest.approx(0, abs=1e-9)


def test_the_error_is_taken_apart() -> None:
    truth = rng.normal(0, 30, (40, 8, 3))
    shared = rng.normal(0, 0.3, truth.shape)
    bias = rng.normal(0, 0.4, (8, 3))
    models = truth + shared + bias + rng.normal(0, 0.5, (60, *truth.shape))
    same = np.tile(np.eye(4), (40, 1, 1))
    parts = dict(limits(models, truth, same, heads(0.2))[1:])
    root = np.sqrt(3)
    assert float(parts["between models"]) == pytest.approx(0.5 * root, rel=0.05)
    common = np.sqrt(3 * 0.3**2 + (bias**2).sum(-1).mean())
    assert float(parts["common to models"]) == pytest.approx(common, rel=0.05)
    squares = [float(parts[name]) ** 2 for name in ("between models", "common to models", "error")]
    assert squares[0] + squares[1] == pytest.approx(squares[2], rel=1e-2)
    assert float(parts["common to heads"]) == pytest.approx(
        np.sqrt((bias**2).sum(-1).mean()), rel=0.1
    )


def test_ways_are_compared_with_the_plain_one_and_ensembles_beside_them() -> None:
    truth = rng.normal(0, 30, (5, 4, 3))
    truth[2, 1] = np.nan
    noise = rng.normal(0, 1, (2, 2, 5, 4, 3))
    noise[1] *= 0.1
    found = {"2 looks": truth + noise[0], "other": truth + noise[1]}
    found = {name: np.nan_to_num(value) for name, value in found.items()}
    head, *lines = ways_table(found, truth)
    rows = {line[0]: [float(cell) for cell in line[1:]] for line in lines}
    assert [*rows] == ["2 looks", "other", "mean of 2 models, 2 looks", "mean of 2 models, other"]
    assert rows["2 looks"][2:] == [0, 0, 0] and rows["other"][4] < 0
    assert rows["mean of 2 models, 2 looks"][0] < rows["2 looks"][0]
    assert head[3] == "minus 2 looks"
