"""The cascade's benchmark: all its parts at a small size, and its count of FLOP."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import vessel_cascade
from experiments.benchmarks import cascade
from jaxmark.methods.cascade import FIRST

SMALL = dataclasses.replace(vessel_cascade.tiny().method, patch=16, reach_mm=2.0)


@pytest.fixture
def small(monkeypatch):
    def experiment(side):
        found = vessel_cascade.paper()
        found.data.crop, found.method = (side,) * 3, SMALL
        return found

    monkeypatch.setattr(cascade, "experiment", experiment)


def test_all_parts_are_measured_and_nothing_stays_but_scans_and_model(small, tmp_path):
    found = cascade.measure(tmp_path, 64, with_commands=False)
    assert list(found) == ["parts", "a patch", "H100, at least"]
    parts = [row["part"] for row in found["parts"]]
    assert parts[-1] == "landmark files" and "resampling and writing" in parts
    assert all(row["ms"] > 0 for row in found["parts"] + found["a patch"])
    assert len(found["a patch"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out",
        "scan.mha",
        "scan.nii",
        "scan.nii.gz",
        "work",
    ]
    # A second time with what is there; of another size it is refused.
    before = (tmp_path / "scan.nii").stat().st_mtime_ns
    with pytest.raises(AssertionError, match="of another side"):
        cascade.measure(tmp_path, 128, with_commands=False)
    assert (tmp_path / "scan.nii").stat().st_mtime_ns == before


def test_the_count_of_flop_is_about_the_compiler_s(small):
    settings = cascade.experiment(64)
    method = settings.method.build(cascade._task(settings))
    variables = jax.eval_shape(method.init, jax.random.key(0)).variables
    landmarks = len(settings.phantom.scheme.landmarks)
    rows = cascade.at_least_on_h100(SMALL, 64, landmarks)
    patches = np.zeros((1, landmarks, 1, 16, 16, 16, 1), np.float16)
    points = np.zeros((1, landmarks, 3), np.float32)
    known = {"first": points[:, :, None], **{name: points for name in ("found", *FIRST)}}
    known |= {name: points[..., 0] for name in ("score", "evidence", "spread_mm")}
    inputs = ({"image": np.zeros((1, 32, 32, 32, 1), np.float16)}, {"image": patches, **known})
    # On a CPU the second stage is a loop over landmarks, which is counted once.
    times = (1, landmarks)
    for stage, arrays, row, count in zip(method.stages, inputs, rows, times, strict=True):
        counted = count * jax.jit(stage.run).lower(variables, arrays).cost_analysis()["flops"]
        # Decoding and maxima are counted by the compiler alone.
        assert 0.6 * counted < 1e9 * row["GFLOP"] < 1.1 * counted
