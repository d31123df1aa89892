"""Pictures are decoded and looked at: the right thing must be in the right place."""

import dataclasses
import io

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from jaxmark.methods.method import GRADIENT, LENGTH_MM, LOSS, SHARE
from jaxmark.registry import METHODS
from jaxmark.results.figures import charts, pictures, segment_charts, style

SHAPE, SPACING = (40, 30, 20), (1.0, 2.0, 1.5)
HERE = np.array([True])


def decode(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def panels(picture):
    """Boxes (left, right, top, bottom) of the three dark panels, from left to right."""
    dark = picture.max(axis=2) < 60
    columns = np.flatnonzero(dark.mean(axis=0) > 0.15)
    boxes = []
    for run in np.split(columns, np.flatnonzero(np.diff(columns) > 20) + 1):
        rows = np.flatnonzero(dark[:, run].mean(axis=1) > 0.5)
        boxes.append((run[0], run[-1], rows[0], rows[-1]))
    return boxes


def place(picture, box, color):
    """Centre of the pixels of a colour in a box, as fractions from its left and its top."""
    left, right, top, bottom = box
    part = picture[top : bottom + 1, left : right + 1]
    rgb = np.array(matplotlib.colors.to_rgb(color)) * 255
    rows, columns = np.nonzero(np.abs(part - rgb).max(axis=2) < 40)
    assert rows.size
    return columns.mean() / (right - left), rows.mean() / (bottom - top)


def draw(truth, predicted, present=HERE, image=None):
    image = np.zeros(SHAPE) if image is None else image
    truth, predicted = (np.where(present[:, None], p, np.nan) for p in (truth, predicted))
    return decode(pictures.overlay(image, SPACING, predicted, "a title", truth_ijk=truth))


def test_overlay_shows_landmarks_where_they_are():
    # Truth: right, front, low. Prediction: left, back, high.
    truth, predicted = np.array([[8, 6, 4]]), np.array([[30, 22, 16]])
    picture = draw(truth, predicted)
    assert picture.shape[1] == 1400
    boxes = panels(picture)
    assert len(boxes) == 3
    for position, color in ((truth[0], style.TRUTH), (predicted[0], style.PREDICTION)):
        x, y, z = (position + 0.5) / SHAPE
        coronal, sagittal, axial = (place(picture, box, color) for box in boxes)
        assert coronal == pytest.approx((x, 1 - z), abs=0.03)
        assert sagittal == pytest.approx((y, 1 - z), abs=0.03)
        assert axial == pytest.approx((x, y), abs=0.03)


def test_overlay_shows_the_image_under_the_landmarks():
    image = np.zeros(SHAPE)
    image[0, 0, 0] = -1e-3  # nothing around it is constant
    image[28:33, 20:25, 14:19] = 1
    position = np.array([[30, 22, 16]])
    picture = draw(position, position, np.array([False]), image)
    for box, where in zip(
        panels(picture),
        ((30.5 / 40, 3.5 / 20), (22.5 / 30, 3.5 / 20), (30.5 / 40, 22.5 / 30)),
        strict=True,
    ):
        assert place(picture, box, "white") == pytest.approx(where, abs=0.05)


def test_overlay_shows_the_part_that_a_small_scan_fills():
    image = np.zeros(SHAPE)
    image[20:30, 10:20, 4:12] = np.random.default_rng(0).uniform(0.5, 1, (10, 10, 8))
    # Within the scan, and a landmark beside it.
    points = np.array([[24, 14, 8], [33, 14, 8]])
    picture = draw(points[:1], points[1:], np.array([True]), image)
    for box, (across, upright) in zip(panels(picture), ((0, 2), (1, 2), (0, 1)), strict=True):
        low, high = np.array([16, 6, 0]), np.array([38, 24, 16])
        sides = (high - low) * SPACING
        shape = (box[1] - box[0]) / (box[3] - box[2])
        assert shape == pytest.approx(sides[across] / sides[upright], rel=0.03)
    x, y, z = (points[0] + 0.5 - [16, 6, 0]) / (np.array([38, 24, 16]) - [16, 6, 0])
    assert place(picture, panels(picture)[2], style.TRUTH) == pytest.approx((x, y), abs=0.03)


def test_overlay_panels_have_true_proportions():
    picture = draw(np.array([[8, 6, 4]]), np.array([[8, 6, 4]]))
    millimetres = np.array(SHAPE) * SPACING
    for box, (across, upright) in zip(panels(picture), ((0, 2), (1, 2), (0, 1)), strict=True):
        width, height = box[1] - box[0], box[3] - box[2]
        assert width / height == pytest.approx(millimetres[across] / millimetres[upright], rel=0.02)


def test_overlay_leaves_out_absent_landmarks_and_bears_odd_images():
    image = np.full(SHAPE, np.nan)
    picture = draw(np.array([[np.nan] * 3]), np.array([[8, 6, 4]]), np.array([False]), image)
    with pytest.raises(AssertionError):
        place(picture, panels(picture)[0], style.PREDICTION)


def rows_of(count):
    return [{"name": f"name {k} $x$", "mre_mm": 1.0 + k % 3, "sd_mm": 0.5} for k in range(count)]


def height_of(svg):
    return float(svg.split(b'height="')[1].split(b"pt")[0])


def test_bars_stay_apart_however_many():
    few, many = (charts.per_landmark_bars(rows_of(count)) for count in (5, 60))
    assert height_of(many) - height_of(few) == pytest.approx(55 * 0.2 * 72)


def test_bars_bear_landmarks_that_are_never_there():
    rows = [*rows_of(2), {"name": "never", "mre_mm": None, "sd_mm": None}]
    assert b"in no scan" in charts.per_landmark_bars(rows, {"floor": rows})
    assert charts.per_landmark_bars(rows[2:])


@pytest.mark.parametrize("errors", [np.full((2, 2), np.nan), np.zeros((2, 2)), np.eye(2) * 80])
def test_curve_of_odd_errors(errors):
    svg = charts.sdr_curve(errors, {"mean_$position": errors + 1}, (2, 4))
    assert svg.startswith(b"<?xml")
    assert charts.sdr_curve(errors, {}, ())


def test_curve_is_the_share_within_the_radius(monkeypatch):
    drawn = {}

    def keep(figure: Figure, kind):
        line = figure.axes[0].get_lines()[-1]
        drawn["x"], drawn["y"] = line.get_data()
        return b""

    monkeypatch.setattr(charts, "rendered", keep)
    errors = np.array([[3.0, 1.0], [np.nan, 2.0], [8.0, np.nan]])
    charts.sdr_curve(errors, {}, (2,))
    for radius, share in ((1.0, 0.25), (2.5, 0.5), (3.0, 0.75), (8.0, 1.0)):
        assert drawn["y"][np.searchsorted(drawn["x"], radius, "right") - 1] == share


# What the numbers of a log are, whatever they are called.
KINDS = {
    "loss": LOSS,
    "d_loss": LOSS,
    "real_accuracy": SHARE,
    "gradient_norm": GRADIENT,
    "width_mm": LENGTH_MM,
}


def train(step, phase="pretrain", **numbers):
    return {"kind": "train", "phase": phase, "step": step, **numbers}


def validation(step, mre_mm, phase="pretrain"):
    return {"kind": "validation", "phase": phase, "step": step, "mre_mm": mre_mm}


def test_phases_are_laid_end_to_end():
    records = [train(10, loss=3.0), train(20, loss=2.0), train(5, "joint", loss=1.0)]
    panels, validations, starts = charts._series([*records, validation(5, 1.5, "joint")], KINDS)
    assert [steps.tolist() for steps, _ in panels["loss"]["loss"]] == [[10, 20], [25]]
    assert [(steps.tolist(), values.tolist()) for steps, values in validations] == [([25], [1.5])]
    assert starts == {"pretrain": 0, "joint": 20}


def test_phases_that_count_on_stay_where_they_are():
    panels, _, _ = charts._series([train(20, loss=3.0), train(30, "joint", loss=2.0)], KINDS)
    assert [steps.tolist() for steps, _ in panels["loss"]["loss"]] == [[20], [30]]


def test_a_resumed_run_replaces_what_it_repeats():
    records = [train(10, loss=3.0), train(20, loss=9.0), train(20, loss=2.0), train(30, loss=1.0)]
    ((steps, values),) = charts._series(records, KINDS)[0]["loss"]["loss"]
    assert (steps.tolist(), values.tolist()) == ([10, 20, 30], [3, 2, 1])


def test_training_curves():
    records = [train(s, loss=1 / (1 + s), loss_d=float("nan"), lr=1.0) for s in range(200)]
    assert charts.training_curves(records, KINDS).startswith(b"<?xml")
    assert charts.training_curves([validation(5, 1.5)], KINDS)
    assert charts.training_curves([], KINDS) is None
    assert charts.training_curves([train(1, loss=-1.0), {"kind": "start"}], KINDS) is None


def test_what_a_gan_logs_is_drawn_and_warnings_are_marked():
    numbers = {"real_accuracy": 0.0, "d_loss": 1.0, "gradient_norm": 2.0, "width_mm": 9.0}
    numbers |= {"loss_of_nothing": 1.0}
    records = [train(10, **numbers), train(20, **numbers)]
    panels, _, _ = charts._series(records, KINDS)
    assert {word: [*curves] for word, curves in panels.items()} == {
        "loss": ["d_loss"],
        # No logarithm: a share may be zero.
        "share": ["real_accuracy"],
        "gradient": ["gradient_norm"],
        "length_mm": ["width_mm"],
    }
    warning = {"kind": "warning", "phase": "joint", "step": 20, "message": "<saturated>"}
    drawn = charts.training_curves([*records, warning], KINDS)
    assert style.TRUTH.encode() in drawn
    assert style.TRUTH.encode() not in charts.training_curves(records, KINDS)


def test_smoothing_keeps_a_constant_and_the_length():
    np.testing.assert_allclose(charts._smooth(np.full(300, 2.0)), 2.0)
    np.testing.assert_array_equal(charts._smooth(np.array([4.0])), [4.0])


def test_pictures_are_the_same_each_time_and_leave_no_settings():
    before = dict(matplotlib.rcParams)
    assert charts.per_landmark_bars(rows_of(3)) == charts.per_landmark_bars(rows_of(3))
    assert dict(matplotlib.rcParams) == before


def test_overlay_of_a_scan_without_truth_is_numbered_and_shows_what_is_probably_absent():
    predicted = np.array([[8.0, 6, 4], [30, 22, 16]])
    arguments = (np.zeros(SHAPE), SPACING, predicted, "a title")
    plain = decode(pictures.overlay(*arguments))
    keyed = decode(pictures.overlay(*arguments, names=("one", "two $x$ " + "very " * 20)))
    faint = decode(pictures.overlay(*arguments, faint=np.array([False, True])))
    assert keyed.shape[0] > plain.shape[0] and keyed.shape[1] == plain.shape[1] == 1400

    def pixels(picture, color):
        rgb = np.array(matplotlib.colors.to_rgb(color)) * 255
        return (np.abs(picture - rgb).max(axis=2) < 40).sum()

    assert pixels(plain, style.TRUTH) == 0
    # A ring has fewer pixels of full colour than a dot; numbers add some.
    assert pixels(keyed, style.PREDICTION) > pixels(plain, style.PREDICTION)
    assert 0 < pixels(faint, style.PREDICTION)
    assert not np.array_equal(faint, plain)


def tile(title, doubtful=False, where=(10, 8, 5)):
    image = np.zeros(SHAPE)
    image[where] = 1
    return pictures.Tile(title, image.max(2), image.max(1), doubtful)


def test_contact_sheet_shows_every_case_with_the_same_marks():
    marks = np.array([[10.0, 8, 5]])
    even = [tile(f"case{n}") for n in range(7)]
    sheet = decode(pictures.contact_sheet(even, SPACING, marks, "cohort"))
    doubtful = [*even[:6], tile("case6", doubtful=True)]
    red = decode(pictures.contact_sheet(doubtful, SPACING, marks, "cohort"))
    mark = np.array(matplotlib.colors.to_rgb(style.MARK)) * 255
    dots = np.abs(sheet - mark).max(axis=2) < 70
    # One a projection, two a case: as many separate spots.
    _, spots = ndimage.label(ndimage.binary_dilation(dots, iterations=2))
    assert spots == 14

    def reds(picture):
        return (np.abs(picture - np.array([240, 40, 45])).max(axis=2) < 30).sum()

    assert reds(sheet) == 0 and reds(red) > 100


def test_every_kind_of_metric_has_a_panel():
    kinds = {kind for settings in METHODS.values() for kind in settings.metrics.values()}
    assert kinds <= set(charts._PANELS)


def test_contact_sheet_shows_a_case_s_own_landmarks_beside_the_mean_ones():
    marks, own = np.array([[10.0, 8, 5]]), np.array([[20.0, 16, 10], [np.nan] * 3])
    plain = tile("a")
    sheet = decode(
        pictures.contact_sheet([dataclasses.replace(plain, own_ijk=own)], SPACING, marks, "t")
    )
    without = decode(pictures.contact_sheet([plain], SPACING, marks, "t"))

    def pixels(picture, color):
        rgb = np.array(matplotlib.colors.to_rgb(color)) * 255
        return (np.abs(picture - rgb).max(axis=2) < 70).sum()

    assert pixels(sheet, style.OWN) > 10 > pixels(without, style.OWN)
    assert pixels(sheet, style.MARK) == pixels(without, style.MARK) > 0


@pytest.mark.parametrize(
    ("panel", "axis", "step"),
    [(0, 1, -1), (1, 0, 1), (2, 2, -1)],
    ids=["coronal, from the front", "sagittal, from the left", "axial, from below"],
)
def test_the_nearest_label_is_seen(panel, axis, step):
    labels = np.zeros(SHAPE, np.uint8)
    behind = [slice(16, 24), slice(12, 18), slice(8, 12)]
    labels[tuple(behind)] = 1
    nearer = [*behind]
    width = behind[axis].stop - behind[axis].start
    nearer[axis] = slice(behind[axis].start + step * width, behind[axis].stop + step * width)
    labels[tuple(nearer)] = 2
    shown = pictures.Segmentation(labels, ["behind", "nearer", "nowhere"])
    assert [name for name, _ in shown.drawn()] == ["behind", "nearer"]
    points = np.zeros((0, 3))
    png = pictures.overlay(np.zeros(SHAPE), SPACING, points, "t", segments=shown)
    picture = decode(png)
    colors = pictures.segment_colors(3) / 2  # half of it over black
    boxes = panels(decode(pictures.overlay(np.zeros(SHAPE), SPACING, points, "t")))
    for number, (box, planes) in enumerate(zip(boxes, ((0, 2), (1, 2), (0, 1)), strict=True)):
        for box_of, color in zip((behind, nearer), colors, strict=False):
            if number == panel and box_of is behind:
                with pytest.raises(AssertionError):
                    place(picture, box, color)
                continue
            x, y = place(picture, box, color)
            across, upright = ((box_of[i].start + box_of[i].stop) / 2 / SHAPE[i] for i in planes)
            # The head is up, the face at the top of the axial view.
            expected = across, upright if planes == (0, 1) else 1 - upright
            assert (x, y) == pytest.approx(expected, abs=0.02)


def test_colors_of_neighbours_differ():
    colors = pictures.segment_colors(30)
    assert colors.shape == (30, 3) and ((colors >= 0) & (colors <= 1)).all()
    assert np.linalg.norm(np.diff(colors, axis=0), axis=1).min() > 0.5
    assert pictures.segment_colors(0).shape == (0, 3)


def test_charts_of_segments_hold_their_numbers(monkeypatch):
    drawn = []
    monkeypatch.setattr(segment_charts, "rendered", lambda figure, kind: drawn.append(figure))
    rows = [
        {"name": n, "n": k, "dice": d, "cldice": c}
        for n, k, d, c in (("a", 3, 0.5, 0.75), ("none", 0, None, None), ("b$", 1, 1.0, 0.25))
    ]
    segment_charts.overlap_bars(rows)
    axes = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b$"]
    ticks = [path.vertices[0, 0] for path in axes.collections[0].get_paths()]
    assert ticks == [0.75, 0.25]
    share, there = np.array([0.9, 0.2, 0.6]), np.array([True, False, True])
    segment_charts.probability_dots([("a", share, there), ("b", share[:1], there[:1])])
    lines = [line for line in drawn[1].axes[0].get_lines() if line.get_marker() in "oD"]
    assert [line.get_xdata().tolist() for line in lines] == [[0.9, 0.6], [0.9], [0.2], []]
    # Above its line what is there, below it what is missing: the axis points down.
    for line, (low, high) in zip(lines, ((-0.5, 0), (0.5, 1), (0, 0.5), (1, 2)), strict=True):
        assert ((line.get_ydata() > low) & (line.get_ydata() < high)).all()


def test_a_chart_of_segments_that_no_case_has():
    row = {"name": "none", "n": 0, "dice": None, "cldice": None}
    assert segment_charts.overlap_bars([row]).startswith(b"<?xml")
