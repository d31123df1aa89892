"""Prepared pictures: the common grid, the native one, and settings that do not go together."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from pictures import GREY, png

from jaxmark.config import Data, Experiment, validate
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cohort import read_cohort
from jaxmark.data.frame import load_frame, prepare_scan, save_frame
from jaxmark.data.prepare import prepare_cohort
from jaxmark.methods.heatmap import HeatmapRegression

SIZES = {"wide": (12, 6), "high": (5, 14), "square": (9, 9)}


def blob(width: int, height: int, x: float, y: float) -> np.ndarray:
    """(H, W) uint8: a spot whose centre is at (x, y)."""
    rows, columns = np.mgrid[:height, :width]
    return (250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 4)).astype(np.uint8)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three pictures of different sizes, with a spot, which is the landmark."""
    folder = tmp_path / "root"
    (folder / "images").mkdir(parents=True)
    lines = ["case,landmark,x_px,y_px"]
    for name, (width, height) in SIZES.items():
        x, y = width // 2 - 1, height // 2 + 1
        (folder / "images" / f"{name}.png").write_bytes(png(blob(width, height, x, y)))
        lines.append(f"{name},spot,{x},{y}")
    (folder / "landmarks.csv").write_text("\n".join(lines))
    (folder / "splits.json").write_text('{"train": ["wide", "high"], "val": ["square"]}')
    return folder


def prepared(root: Path, **fields):
    defaults = {"crop": (8, 8, 1), "spacing_mm": (1.0, 1.0, 1.0), "margin": 1, "workers": 1}
    data = Data(root=str(root), cache=str(root.parent / "cache"), **(defaults | fields))
    return prepare_cohort(read_cohort(data), data)


def test_the_native_grid_pads_and_crops_about_the_middle_and_interpolates_nothing(root):
    found = prepared(root, unit="px", grid="native")
    for name, (width, height) in SIZES.items():
        case = found.cases[name]
        image = case.image()
        assert image.shape == (10, 10, 1)
        shift = np.array([(10 - width) // 2, (10 - height) // 2, 0])
        np.testing.assert_array_equal(case.ijk_to_lps[:3, 3], -shift)
        np.testing.assert_array_equal(case.ijk_to_lps[:3, :3], np.eye(3))
        np.testing.assert_array_equal(case.landmarks_ijk, case.landmarks_mm + shift)
        pixels = blob(width, height, *case.landmarks_mm[0, :2]).T.astype(np.float32)
        x, y = (
            slice(max(s, 0), max(s, 0) + n) for s, n in zip(shift, (width, height), strict=False)
        )
        there = image[x, y, 0].astype(np.float32)
        cut = pixels[max(-shift[0], 0) :, max(-shift[1], 0) :][: there.shape[0], : there.shape[1]]
        # One line through all pixels, whatever became 0 and 1.
        slope = np.polyfit(cut.ravel(), there.ravel(), 1)
        np.testing.assert_allclose(np.polyval(slope, cut), there, atol=2e-3)
        outside = np.ones((10, 10), bool)
        outside[x, y] = False
        assert np.ptp(image[..., 0][outside]) == 0


def test_the_common_grid_has_one_spacing_and_the_plane_of_the_pictures(root):
    found = prepared(root, pixel_size_mm=0.5, spacing_mm=(0.25, 0.25, 1.0), crop=(12, 12, 1))
    for case in found.cases.values():
        np.testing.assert_allclose(np.diag(case.ijk_to_lps), [0.25, 0.25, 1, 1])
        assert case.ijk_to_lps[2, 3] == 0 and case.pixel_mm == (0.5, 0.5)
        i, j, k = np.rint(case.landmarks_ijk[0]).astype(int)
        assert k == 0
        image = case.image()
        if 0 <= i < 14 and 0 <= j < 14:
            assert image[i, j, 0] == pytest.approx(image.max(), abs=0.05)


def test_centres_of_mass_bring_pictures_together(root):
    found = prepared(root, pixel_size_mm=1.0, register="center", template="wide")
    spots = np.stack([case.landmarks_ijk[0] for case in found.cases.values()])
    apart = prepared(root, pixel_size_mm=1.0)
    loose = np.stack([case.landmarks_ijk[0] for case in apart.cases.values()])
    assert np.ptp(spots, axis=0).max() < 1.0 < np.ptp(loose, axis=0).max()
    assert np.ptp(spots[:, 2]) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": "px", "grid": "native"},
        {"unit": "mm", "grid": "native", "pixel_size_mm": 0.5},
        {"pixel_size_mm": 0.5},
        {"pixel_size_mm": 0.5, "register": "center", "template": "wide"},
    ],
)
def test_a_frame_prepares_new_pictures_as_it_did_the_cohort(root, tmp_path, fields):
    found = prepared(root, **fields)
    save_frame(found.frame, found.landmarks, tmp_path / "model")
    frame, names = load_frame(tmp_path / "model")
    assert names == ("spot",) and frame.planar
    assert (frame.unit, frame.grid) == (fields.get("unit", "mm"), fields.get("grid", "common"))
    for name, case in found.cases.items():
        path = root / "images" / f"{name}.png"
        again = prepare_scan(path, frame, pixel_size_mm=fields.get("pixel_size_mm", 0.0))
        np.testing.assert_allclose(again.image, case.image(), atol=2e-3)
        np.testing.assert_allclose(again.ijk_to_lps, case.ijk_to_lps, atol=1e-6)
        back = apply_affine(case.ijk_to_lps, case.landmarks_ijk)
        np.testing.assert_allclose(back, case.landmarks_mm, atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"crop": (8, 8, 8), "unit": "px"}, "config.data.unit"),
        ({"crop": (8, 8, 8), "grid": "native"}, "config.data.grid"),
        ({"crop": (8, 8, 8), "pixel_size_mm": 0.1}, "config.data.pixel_size_mm"),
        ({"register": "rigid"}, "config.data.register: rigid is for volumes"),
        ({"grid": "native", "register": "center"}, "config.data.register: center moves"),
        ({"grid": "native", "spacing_mm": (0.5, 0.5, 1.0)}, "config.data.spacing_mm"),
        ({"suffix": "T1w"}, "config.data.suffix"),
        ({"pixel_size_mm": -1.0}, "config.data.pixel_size_mm"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, problem):
    data = Data(**({"crop": (8, 8, 1), "spacing_mm": (1.0, 1.0, 1.0), "margin": 4} | fields))
    refused(partial(validate, Experiment(method=HeatmapRegression(), data=data)), problem)


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.mha").write_bytes(b"x")
    data = Data(root=str(tmp_path), crop=(8, 8, 1))
    refused(partial(read_cohort, data), "holds no pictures", "a.mha")
    (tmp_path / "images" / "b.png").write_bytes(png(GREY))
    refused(partial(read_cohort, data), "has no landmarks")
    (tmp_path / "images" / "a.mha").unlink()
    volumes = Data(root=str(tmp_path))
    refused(partial(read_cohort, volumes), "holds no scans", "b.png", "crop has Z = 1")
