"""The trained model that lies in the repository: it is the one that is documented, and works."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from experiments.phantoms.looks import people, scan
from jaxmark.core.grids import centred
from jaxmark.data.phantoms.grids import Grid
from jaxmark.workflow import load_model

HOME = Path(__file__).parents[1]
MODEL = HOME / "experiments" / "models" / "cow_any.zip"


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL)


def test_it_is_the_documented_file():
    digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    page = HOME / "docs" / "methods" / "coarse_to_fine.md"
    assert digest in page.read_text("utf-8")


def test_it_finds_the_landmarks_of_someone_new_and_refuses_noise(model):
    grid = Grid((160, 160, 120), centred((160, 160, 120), (0.8, 0.8, 0.8)).ijk_to_lps)
    (someone,) = people(1, grid)
    one = scan(someone, "MRA", grid, 0)
    found = model.predict(one.voxels, one.ijk_to_lps, "LPS")
    shown = one.present & ~np.isin(found.landmarks, list(found.hidden))
    off = np.linalg.norm(found.positions_mm - one.landmarks_mm, axis=1)[shown]
    assert shown.sum() >= 10 and not found.refused
    assert np.median(off) < 3 and off.max() < 10
    noise = np.random.default_rng(0).random(one.voxels.shape, np.float32)
    assert model.predict(noise, one.ijk_to_lps, "LPS").refused
