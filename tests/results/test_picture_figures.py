"""Pictures are drawn as they are: one panel, x to the right, y downwards, square pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxmark.results.figures import pictures
from jaxmark.results.figures.pictures import Tile, contact_sheet, overlay

NOTHING = np.full((1, 3), np.nan)


def grey(png: bytes) -> np.ndarray:
    """(H, W) in [0, 255]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)


def test_a_picture_is_one_panel_with_its_first_pixel_at_the_top_left():
    image = np.zeros((40, 20, 1), np.float32)
    image[:10, :10] = 1.0
    shown = grey(overlay(image, (0.5, 0.5, 1.0), NOTHING, "a picture", unit="px"))
    # The black part of the only panel, and the white square in it, both on a white figure.
    dark = shown < 60
    left, right = np.flatnonzero(dark.mean(0) > 0.2)[[0, -1]]
    top, bottom = np.flatnonzero(dark.mean(1) > 0.2)[[0, -1]]
    wide, high = right - left, bottom - top
    assert abs(wide / high - 2) < 0.05
    square = shown[top : bottom + 1, left : right + 1]
    assert square[high // 4, wide // 8] > 200
    assert square[high // 4, wide * 3 // 4] < 60 and square[high * 3 // 4, wide // 8] < 60


@pytest.mark.parametrize(
    ("sides", "start"), [((40, 20, 1), (-4.25, -3.25)), ((40, 20, 8), (-0.25, -0.25))]
)
def test_axes_of_a_picture_count_as_its_landmarks_do(sides, start, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "rendered", lambda figure, _: drawn.append(figure) or b"")
    point = np.array([[8.0, 6.0, 0.0]])
    origin = np.array([-4.0, -3.0, 0.0])
    overlay(np.ones(sides), (0.5, 0.5, 0.5), point, "margin", unit="px", origin_mm=origin)
    axes = drawn[0].axes[-1]
    corner = min(axes.get_xlim()), min(axes.get_ylim())
    np.testing.assert_allclose(corner, start)
    at = axes.collections[0].get_offsets()[0]
    np.testing.assert_allclose(at, np.array(start) + 0.25 + point[0, :2] * 0.5)


def test_a_contact_sheet_of_pictures_has_one_view_a_case():
    image = np.zeros((30, 30), np.float32)
    image[:10, :10] = 1.0
    tiles = [Tile(f"case {n}", image, None, False, np.zeros((1, 3))) for n in range(4)]
    flat = grey(contact_sheet(tiles, (1.0, 1.0, 1.0), np.full((1, 3), 5.0), "pictures"))
    volumes = [Tile(f"case {n}", image, image, False, np.zeros((1, 3))) for n in range(4)]
    both = grey(contact_sheet(volumes, (1.0, 1.0, 1.0), np.full((1, 3), 5.0), "volumes"))
    bright = [(sheet > 240).mean() * sheet.size / sheet.shape[1] ** 2 for sheet in (flat, both)]
    # Each is as wide as the sheet: half as many views are twice as wide.
    assert bright[0] > 1.5 * bright[1] > 0
