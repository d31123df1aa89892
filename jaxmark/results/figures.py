"""Pictures of predictions and of a training run, as the bytes of a PNG or SVG file.

Only matplotlib's object interface is used: no window system, and no state that outlives a call.
Charts are SVG with a transparent ground, so that a page can show them on its own.
"""

import colorsys
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from jaxmark.methods.method import GRADIENT, LENGTH_MM, LOSS, SHARE

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
METHOD = "#0072b2"
FLOORS = ("#d55e00", "#8a8a8a", "#cc79a7", "#009e73")
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#333333"
# Truth is dark and large, prediction light and small: size and brightness tell them apart as well.
TRUTH = "#f0282d"
PREDICTION = "#4dff6a"
MARK = "#00c8ff"
OWN = "#ffd166"

# Of the names below a picture with numbered points.
_KEY_COLUMNS = 6
# Of the colours of segments.
_COLOR_COLUMNS = 10

# The type of a key is a list of all that matplotlib knows, which a plain dict is not.
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "grid.color": "#d5d5d5",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    # Names come from data: a dollar sign in one is no formula.
    "text.parse_math": False,
    # The same figures give the same bytes.
    "svg.hashsalt": "jaxmark",
}


def overlay(
    image: np.ndarray,
    spacing_mm: Sequence[float],
    predicted_ijk: np.ndarray,
    title: str,
    *,
    truth_ijk: np.ndarray | None = None,
    names: Sequence[str] = (),
    faint: np.ndarray | None = None,
    segments: "Segmentation | None" = None,
) -> bytes:
    """PNG, 1400 pixels wide: three maximum intensity projections with landmarks on them.

    `image` (X, Y, Z), x towards the patient's left, y towards the back, z towards the head;
    `predicted_ijk`, `truth_ijk` (K, 3) voxels, NaN for what is not to be drawn. With `names` points
    are numbered and a key stands below; `faint` (K,) are drawn as rings. `segments` are translucent
    colours below the points, in each view the one nearest to who looks. Views as a radiologist has
    them: the patient's right is on the left of the coronal and axial ones, the head is up, the face
    is on the left of the sagittal and at the top of the axial one. All are drawn to one scale.
    """
    image = np.nan_to_num(np.asarray(image, np.float32))
    size_mm = np.array(image.shape) * spacing_mm
    predicted_mm = np.asarray(predicted_ijk) * spacing_mm
    truth_mm = None if truth_ijk is None else np.asarray(truth_ijk) * spacing_mm
    if faint is None:
        faint = np.zeros(len(predicted_mm), bool)
    # (name, horizontal axis, vertical axis)
    views = (("coronal", 0, 2), ("sagittal", 1, 2), ("axial", 0, 1))

    # Inches: the panels share what the margins leave of the width.
    key_rows = -(-len(names) // _KEY_COLUMNS)
    width, left, gap, top, bottom = 14.0, 0.65, 0.7, 0.75, 0.55
    drawn = [] if segments is None else segments.drawn()
    color_rows = -(-len(drawn) // _COLOR_COLUMNS)
    color_height = 0.2 * color_rows + 0.1 * bool(color_rows)
    key_height = 0.2 * key_rows + 0.1 * bool(key_rows) + color_height
    room = width - left - gap * (len(views) - 1) - 0.25
    widest = sum(size_mm[across] for _, across, _ in views)
    highest = max(size_mm[upright] for _, _, upright in views)
    # A long and thin volume would become a picture of several screens.
    scale = min(room / widest, 10.0 / highest)
    height = highest * scale + top + bottom + key_height

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
        figure.text(left / width, 1 - 0.3 / height, title, size=13, weight="bold", va="center")
        x = left
        for name, across, upright in views:
            panel = size_mm[across] * scale, size_mm[upright] * scale
            y = height - top - panel[1]
            axes = figure.add_axes(
                (x / width, y / height, panel[0] / width, panel[1] / height), label=name
            )
            x += panel[0] + gap
            _project(axes, image, spacing_mm, across, upright)
            if segments is not None:
                _draw_labels(axes, segments, spacing_mm, across, upright)
            plane = [across, upright]
            _mark(
                axes,
                predicted_mm[:, plane],
                None if truth_mm is None else truth_mm[:, plane],
                faint,
                numbered=bool(names),
            )
            _name_sides(axes, across, upright)
            axes.set_title(name, loc="left")
        for number, name in enumerate(names):
            column, row = divmod(number, key_rows)
            figure.text(
                (left + column * (width - left) / _KEY_COLUMNS) / width,
                (key_height - 0.2 * row - 0.1) / height,
                f"{number + 1}  {_shortened(name)}" + " (probably absent)" * bool(faint[number]),
                size=9,
                va="center",
            )
        for number, (name, color) in enumerate(drawn):
            column, row = divmod(number, color_rows)
            x = (left + column * (width - left) / _COLOR_COLUMNS) / width
            y = (color_height - 0.2 * row - 0.1) / height
            figure.add_artist(Line2D([x], [y], marker="s", ms=7, color=color))
            figure.text(x + 0.12 / width, y, _shortened(name, 18), size=9, va="center")
        if len(predicted_mm):
            _overlay_legend(
                figure, width, height, truth=truth_mm is not None, faint=bool(faint.any())
            )
        return rendered(figure, "png")


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A label map over a volume: `labels` (X, Y, Z), 0 or 1 + index into the S `names`."""

    labels: np.ndarray
    names: Sequence[str]

    def drawn(self) -> list[tuple[str, Any]]:
        """Names and colours of the segments that have a voxel."""
        there = np.bincount(self.labels.ravel(), minlength=len(self.names) + 1)[1:] > 0
        rows = zip(self.names, segment_colors(len(self.names)), there, strict=True)
        return [(name, color) for name, color, here in rows if here]


def segment_colors(count: int) -> np.ndarray:
    """(count, 3) RGB in [0, 1]: hues that neighbours in a list, such as R and L, do not share."""
    golden = (np.sqrt(5) - 1) / 2
    return np.array(
        [
            colorsys.hls_to_rgb(index * golden % 1, (0.5, 0.65, 0.57)[index % 3], 0.9)
            for index in range(count)
        ]
    ).reshape(count, 3)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A case on a contact sheet."""

    title: str
    axial: np.ndarray  # (X, Y) maximum intensity projections, in [0, 1]
    coronal: np.ndarray  # (X, Z)
    doubtful: bool
    own_ijk: np.ndarray | None = None  # (K, 3) voxels: its own landmarks, NaN for what it lacks
    # (X, Y) and (X, Z) uint8: projections of its label map, 0 where there is no label.
    labels: tuple[np.ndarray, np.ndarray] | None = None


_SHEET_MARKS = (
    "number: quality of the registration; blue dots: mean landmarks; yellow rings: the case's own "
    "landmarks; red frame: doubtful, see cases.csv"
)
_SHEET_LABELS = "; tinted: segments of its label map"
_LABEL_OPACITY = 0.5


def contact_sheet(
    tiles: Sequence[Tile], spacing_mm: Sequence[float], marks_ijk: np.ndarray, title: str
) -> bytes:
    """PNG: cases beside each other in one grid, axial and coronal, the same marks on all.

    `marks_ijk` (K, 3) voxels, such as the mean landmarks: where cases are aligned, the anatomy
    under them is the same. A case's own landmarks are rings around them, or elsewhere. Doubtful
    cases have a red frame. Views as in `overlay`.
    """
    nx, ny = tiles[0].axial.shape
    nz = tiles[0].coronal.shape[1]
    sx, sy, sz = spacing_mm
    # Voxels of x; other axes are stretched to the same millimetres.
    high_y, high_z = ny * sy / sx, nz * sz / sx
    wide, high = 2.04 * nx, 1.16 * max(high_y, high_z)
    columns = int(np.clip(round(np.sqrt(len(tiles) * high / wide * 1.3)), 1, 6))
    rows = -(-len(tiles) // columns)
    width = 14.0
    scale = width / (columns * wide * 1.03)
    with matplotlib.rc_context(STYLE):
        height = rows * high * scale + 0.5
        figure = Figure(figsize=(width, height), dpi=100, facecolor="black")
        axes = figure.add_axes((0.01, 0.0, 0.98, 1 - 0.5 / height))
        axes.set_axis_off()
        for number, tile in enumerate(tiles):
            row, column = divmod(number, columns)
            x, y = column * wide * 1.03, row * high + 0.13 * high
            right = x + 1.04 * nx
            # Downwards: the face is at the top of the axial view, the head of the coronal one.
            places = ((x, x + nx, y + high_y, y), (right, right + nx, y + high_z, y))
            for view, extent in zip((tile.axial.T, tile.coronal.T[::-1]), places, strict=True):
                axes.imshow(view, cmap="gray", extent=extent, vmin=0, vmax=1)
            if tile.labels is not None:
                tints = (_tint(tile.labels[0].T), _tint(tile.labels[1].T[::-1]))
                for tint, extent in zip(tints, places, strict=True):
                    axes.imshow(tint, extent=extent, interpolation="nearest")
            for ijk, ring in ((tile.own_ijk, True), (marks_ijk, False)):
                if ijk is None:
                    continue
                i, j, k = (np.asarray(ijk) + 0.5).T
                at = (
                    np.concatenate([x + i, right + i]),
                    np.concatenate([y + j * sy / sx, y + high_z - k * sz / sx]),
                )
                if ring:
                    axes.plot(*at, "o", ms=3.4, mfc="none", mec=OWN, mew=0.7)
                else:
                    axes.scatter(*at, s=5, color=MARK, linewidths=0)
            axes.text(
                x, y - 0.02 * high, tile.title, size=8, color=TRUTH if tile.doubtful else "white"
            )
            if tile.doubtful:
                frame = Rectangle(
                    (x, y), 2.04 * nx, max(high_y, high_z), fill=False, ec=TRUTH, lw=2
                )
                axes.add_patch(frame)
        axes.set_xlim(0, columns * wide * 1.03)
        axes.set_ylim(rows * high, 0)
        axes.set_aspect("equal")
        figure.text(0.01, 1 - 0.2 / height, title, size=12, weight="bold", color="white")
        tinted = _SHEET_LABELS * any(tile.labels is not None for tile in tiles)
        figure.text(0.01, 1 - 0.4 / height, _SHEET_MARKS + tinted, size=9, color="white")
        return rendered(figure, "png")


def _tint(labels: np.ndarray) -> np.ndarray:
    """(H, W) uint8 -> (H, W, 4): a colour a label, and nothing where there is none."""
    colors = matplotlib.colormaps["tab20"](np.arange(256) % 20)
    colors[:, 3] = np.where(np.arange(256) > 0, _LABEL_OPACITY, 0)
    return colors[labels]


@dataclasses.dataclass(frozen=True)
class Plane:
    """Two scans, and their K landmarks, on one plane of the fixed scan's world."""

    name: str
    across: int  # LPS axis that is horizontal
    upright: int  # LPS axis that is vertical
    extent_mm: tuple[float, float, float, float]  # left, right, low, high
    # (W, H) in [0, 1]: the fixed scan; the moving one as it lies, and mapped
    fixed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    # (K, 2) mm: landmarks of the fixed scan; those of the moving one as they lie, and mapped
    fixed_mm: np.ndarray
    before_mm: np.ndarray
    after_mm: np.ndarray


# Of the moving scan on a checkerboard: white is this.
_MOVING_TINT = np.array([1.0, 0.82, 0.5])
_SQUARES = 8  # along the shorter side of a plane


def checkerboard(planes: Sequence[Plane], title: str, rows: tuple[str, str]) -> bytes:
    """PNG, 1400 pixels wide: squares of the fixed scan (grey) and of the moving one (yellow).

    A row before and one after the alignment, with the titles `rows`. All landmarks are projected
    onto each plane, the pairs joined by lines. Views as in `overlay`.
    """
    width, left, gap, top, bottom, between = 14.0, 0.65, 0.7, 0.95, 0.55, 1.0
    sizes = np.array(
        [(p.extent_mm[1] - p.extent_mm[0], p.extent_mm[3] - p.extent_mm[2]) for p in planes]
    )
    room = width - left - gap * (len(planes) - 1) - 0.25
    scale = min(room / sizes[:, 0].sum(), 7.0 / sizes[:, 1].max())
    high = sizes[:, 1].max() * scale
    height = 2 * high + top + between + bottom
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
        figure.text(left / width, 1 - 0.3 / height, title, size=13, weight="bold", va="center")
        for row, label in enumerate(rows):
            upper = height - top - row * (high + between)
            figure.text(left / width, (upper + 0.35) / height, label, size=11, va="center")
            x = left
            for plane, size in zip(planes, sizes * scale, strict=True):
                place = (x, upper - size[1], *size)
                axes = figure.add_axes(
                    tuple(v / by for v, by in zip(place, (width, height) * 2, strict=True)),
                    label=f"{plane.name} {row}",
                )
                x += size[0] + gap
                _draw_checkerboard(axes, plane, after=bool(row))
                axes.set_title(plane.name, loc="left", size=9, pad=3)
        handles = [
            _dot("fixed", TRUTH, 5, "none"),
            _dot("moving", PREDICTION, 3.5, PREDICTION),
        ]
        figure.legend(
            handles=handles,
            loc="upper right",
            bbox_to_anchor=(1 - 0.2 / width, 1 - 0.08 / height),
            ncols=len(handles),
        )
        return rendered(figure, "png")


def per_landmark_bars(
    per_landmark: Sequence[Mapping[str, Any]],
    floors: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> bytes:
    """SVG: each landmark's mean radial error with one standard deviation on either side.

    `per_landmark` are rows of `metrics.summarize`, `floors` those of baselines, drawn as ticks.
    Rows keep their order, which holds left and right together; each adds to the height.
    """
    rows = np.arange(len(per_landmark))
    mean = _column(per_landmark, "mre_mm")
    spread = np.nan_to_num(_column(per_landmark, "sd_mm"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.1 + 0.2 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(rows, mean, height=0.62, color=METHOD, alpha=0.85, label="mean")
        # An error is not negative, so neither is its whisker.
        axes.hlines(
            rows, np.maximum(mean - spread, 0), mean + spread, INK, lw=1.1, label="± 1 SD of scans"
        )
        reach = [*mean, *np.quantile(np.nan_to_num(mean + spread), [0.9])]
        floor_reach: list[float] = []
        for color, (name, floor) in zip(cycle(FLOORS), (floors or {}).items(), strict=False):
            where = _column(floor, "mre_mm")
            axes.vlines(where, rows - 0.38, rows + 0.38, color, lw=2, label=_words(name))
            floor_reach.append(np.nanmax(where, initial=0.0))
        axes.set_yticks(rows, [f"{row['name']}" for row in per_landmark], fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        # One gross mistake must not squeeze all other bars: arrows mark whiskers that go on. Nor
        # must a floor far above; the nearest one is shown whole.
        end = 1.08 * float(np.nanmax([*reach, min(floor_reach, default=0.0), 0.1]))
        axes.set_xlim(0, end)
        beyond = rows[np.nan_to_num(mean + spread) > end]
        axes.plot(np.full(len(beyond), end), beyond, ">", color=INK, ms=5, clip_on=False)
        for row in rows[np.isnan(mean)]:
            axes.annotate(
                "in no scan",
                (0, row),
                (4, 0),
                textcoords="offset points",
                va="center",
                size=8,
                style="italic",
            )
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("radial error (mm)")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            # Patches come last by default.
            handles[-1:] + handles[:-1],
            labels[-1:] + labels[:-1],
            loc="outside upper left",
            ncols=len(labels),
        )
        return rendered(figure, "svg")


def landmark_dots(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """SVG: each landmark's mean radial error by each method, on a logarithmic axis.

    `methods` are labels and rows of `metrics.summarize`, with the same landmarks in each.
    """
    names = [str(row["name"]) for row in next(iter(methods.values()))]
    places = np.arange(len(names))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.3 + 0.28 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        axes.hlines(places, 0, 1, "#eeeeee", lw=6, transform=axes.get_yaxis_transform())
        shift = np.linspace(-0.28, 0.28, len(methods)) if len(methods) > 1 else [0.0]
        styles = zip(cycle(LINES), chain(*([m] * len(LINES) for m in "os^Dv")), strict=False)
        for (label, rows), by, (color, marker) in zip(methods.items(), shift, styles, strict=False):
            mean = _column(rows, "mre_mm")
            axes.plot(mean, places + by, marker, color=color, ms=5, label=label)
        axes.set_xscale("log")
        _plain_log_ticks(axes, "x")
        axes.set_yticks(places, names, fontsize=9)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("mean radial error (mm, logarithmic)")
        figure.legend(loc="outside upper left", ncols=4)
        return rendered(figure, "svg")


def sdr_curve(
    errors_mm: np.ndarray, floors: Mapping[str, np.ndarray], thresholds_mm: Sequence[float]
) -> bytes:
    """SVG: share of points found within a radius, over all radii, with the thresholds marked.

    Errors are mm of any shape, NaN where absent; `floors` those of baselines. The radius is
    logarithmic: a good method, a baseline and a gross mistake differ by factors of ten.
    """
    curves = {"this method": errors_mm, **{_words(name): floor for name, floor in floors.items()}}
    points = {name: np.sort(e[np.isfinite(e)]) for name, e in curves.items()}
    everything = np.concatenate([*points.values(), np.asarray(thresholds_mm, float), [1.0]])
    # Errors below a tenth of a millimetre are below what annotators agree on.
    least = float(np.clip(np.quantile(everything, 0.005), 0.1, 1.0))
    most = max(float(everything.max()), 10 * least)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for threshold in thresholds_mm:
            axes.axvline(threshold, color="#aaaaaa", lw=0.9, ls=(0, (2, 2)))
            axes.text(threshold, 1.015, f"{threshold:g}", ha="center", va="bottom", size=9)
        colors, dashes = cycle((METHOD, *FLOORS)), chain("-", cycle(("--", "-.", ":")))
        # Where names stand: at heights of their own, or those of two like curves would collide.
        heights = np.linspace(0.6, 0.3, len(points))
        rows = zip(points.items(), colors, dashes, heights, strict=False)
        for (name, errors), color, dash, height in rows:
            share = np.arange(errors.size + 1) / max(errors.size, 1)
            axes.step(
                np.concatenate([errors, [most]]).clip(least),
                np.minimum(share + 1 / max(errors.size, 1), 1),
                where="post",
                color=color,
                ls=dash,
                lw=2.2 if dash == "-" else 1.6,
            )
            if errors.size:
                radius = float(np.quantile(errors, height, method="higher"))
                # The second baseline is usually the better one, and lies to the left.
                right = color != FLOORS[1]
                _name_beside(axes, name, (max(radius, least), height), color, right=right)
        axes.set_xscale("log")
        axes.set_xlim(least, most)
        axes.set_ylim(0, 1.02)
        _plain_log_ticks(axes, "x")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.grid(axis="y")
        axes.set_xlabel("radius (mm, logarithmic); dashed: SDR thresholds")
        axes.set_ylabel("points within the radius")
        return rendered(figure, "svg")


# What a log's numbers of one kind are drawn in: title, and how the axis is divided.
_PANELS = {
    LOSS: ("training loss", "log"),
    SHARE: ("cases told rightly", "percent"),
    GRADIENT: ("gradient", "log"),
    LENGTH_MM: ("length (mm)", "linear"),
}


def training_curves(records: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> bytes | None:
    """SVG: what was logged over all phases' steps, raw and smoothed, and the validation error.

    `records` are the lines of a log: `kind` "train" with numbers, "validation" with `mre_mm`, and
    "warning", drawn as a line; all with `phase` and `step`. `kinds` says what the numbers are, as
    a method's `metrics` do; those of one kind share a panel, and others are not drawn. None where
    there is nothing to draw.
    """
    series, validations, starts = _series(records, kinds)
    panels = {kind: curves for kind, curves in series.items() if curves}
    if not panels and not validations:
        return None
    warnings = [int(r["step"]) for r in records if r.get("kind") == "warning"]
    with matplotlib.rc_context(STYLE):
        count = len(panels) + bool(validations)
        figure = Figure(figsize=(10, 0.6 + 2.6 * count), layout="constrained")
        grid = figure.subplots(count, sharex=True, squeeze=False)[:, 0]
        for axes, (kind, curves) in zip(grid, panels.items(), strict=False):
            title, scale = _PANELS[kind]
            _draw_curves(axes, curves, scale)
            axes.set_ylabel(title)
        if validations:
            _draw_validations(grid[-1], validations)
        for axes in grid:
            axes.grid(axis="y")
            axes.margins(x=0.01)
            axes.set_xlim(left=0)
            for start in list(starts.values())[1:]:
                axes.axvline(start, color="#aaaaaa", lw=0.9, ls=(0, (2, 2)))
            for step in warnings:
                axes.axvline(step, color=TRUTH, lw=1.2)
        for phase, start in starts.items():
            grid[0].annotate(
                phase,
                (start, 1),
                (3, 3),
                xycoords=grid[0].get_xaxis_transform(),
                textcoords="offset points",
                size=9,
            )
        grid[-1].set_xlabel("step" + ("; red: a warning" if warnings else ""))
        return rendered(figure, "svg")


def _project(
    axes: Axes, image: np.ndarray, spacing_mm: Sequence[float], across: int, upright: int
) -> None:
    """Draw one projection; the centre of the first voxel is at 0 mm."""
    (through,) = {0, 1, 2} - {across, upright}
    projection = image.max(axis=through).T
    low, high = np.percentile(projection, [2, 99.7])
    half = np.array([spacing_mm[across], spacing_mm[upright]]) / 2
    far = np.array(projection.shape[::-1]) * 2 * half - half
    axes.imshow(
        projection,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        origin="lower",
        aspect="equal",
        extent=(-half[0], far[0], -half[1], far[1]),
        interpolation="bilinear",
    )


def _draw_labels(
    axes: Axes, segments: Segmentation, spacing_mm: Sequence[float], across: int, upright: int
) -> None:
    """Draw a label map over a projection of its volume."""
    (through,) = {0, 1, 2} - {across, upright}
    # One looks from the left, from the front, and from below.
    depth = np.moveaxis(segments.labels, through, 0)[:: -1 if through == 0 else 1]
    first = (depth > 0).argmax(axis=0)
    nearest = np.take_along_axis(depth, first[None], axis=0)[0].T
    colors = np.zeros((len(segments.names) + 1, 4))
    colors[1:, :3], colors[1:, 3] = segment_colors(len(segments.names)), 0.5
    half = np.array([spacing_mm[across], spacing_mm[upright]]) / 2
    far = np.array(nearest.shape[::-1]) * 2 * half - half
    axes.imshow(
        colors[nearest],
        origin="lower",
        aspect="equal",
        extent=(-half[0], far[0], -half[1], far[1]),
        interpolation="nearest",
    )


def _mark(
    axes: Axes,
    predicted_mm: np.ndarray,
    truth_mm: np.ndarray | None,
    faint: np.ndarray,
    *,
    numbered: bool,
) -> None:
    """Predictions (K, 2) in a panel's millimetres; truth, and the error between them, if known."""
    axes.autoscale(False)
    if truth_mm is not None:
        for start, end in np.stack([truth_mm, predicted_mm], axis=1):
            axes.plot(*zip(start, end, strict=True), color="#ffe066", lw=1.1, zorder=3)
        axes.scatter(truth_mm[:, 0], truth_mm[:, 1], s=34, color=TRUTH, linewidths=0, zorder=4)
    sure, unsure = predicted_mm[~faint], predicted_mm[faint]
    axes.scatter(sure[:, 0], sure[:, 1], s=12, color=PREDICTION, linewidths=0, zorder=4)
    axes.plot(unsure[:, 0], unsure[:, 1], "o", ms=5, mfc="none", mec=PREDICTION, mew=0.9, zorder=4)
    if numbered:
        # Up and to the right of the point, whichever way the axis runs.
        low, high = axes.get_ylim()
        aside = 0.008 * (high - low)
        for number, (x, y) in enumerate(predicted_mm, start=1):
            axes.text(x + abs(aside), y + aside, str(number), size=7, color=PREDICTION)


def _name_sides(axes: Axes, across: int, upright: int) -> None:
    """Letters at the four sides of a plane along two LPS axes, and the axes' names.

    The head is up; in an axial plane, the face.
    """
    if upright == 1:
        axes.invert_yaxis()
    ends = (("R", "L"), ("A", "P"), ("I", "S"))
    low, high = ends[upright][::-1] if upright == 1 else ends[upright]
    for letter, place in zip(
        (*ends[across], low, high),
        ((0.03, 0.5), (0.97, 0.5), (0.5, 0.04), (0.5, 0.96)),
        strict=True,
    ):
        axes.text(
            *place,
            letter,
            transform=axes.transAxes,
            ha="center",
            va="center",
            color="#ffd166",
            weight="bold",
        )
    axes.set_xlabel(f"{'xyz'[across]} (mm)", labelpad=2)
    axes.set_ylabel(f"{'xyz'[upright]} (mm)", labelpad=2)


def _draw_checkerboard(axes: Axes, plane: Plane, *, after: bool) -> None:
    moving, moving_mm = (plane.after, plane.after_mm) if after else (plane.before, plane.before_mm)
    square = max(1, min(plane.fixed.shape) // _SQUARES)
    i, j = np.indices(plane.fixed.shape) // square
    is_moving = ((i + j) % 2 == 1)[..., None]
    colors = np.where(is_moving, moving[..., None] * _MOVING_TINT, plane.fixed[..., None])
    axes.imshow(
        np.swapaxes(colors, 0, 1),
        origin="lower",
        aspect="equal",
        extent=plane.extent_mm,
        interpolation="nearest",
    )
    axes.autoscale(False)
    for start, end in np.stack([plane.fixed_mm, moving_mm], axis=1):
        axes.plot(*zip(start, end, strict=True), color="#ffe066", lw=1.1, zorder=3)
    axes.plot(*plane.fixed_mm.T, "o", ms=5, mfc="none", mec=TRUTH, mew=1.1, zorder=4)
    axes.scatter(moving_mm[:, 0], moving_mm[:, 1], s=8, color=PREDICTION, linewidths=0, zorder=5)
    _name_sides(axes, plane.across, plane.upright)


def _dot(label: str, color: str, size: float, fill: str) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], marker="o", ls="", ms=size, mec=color, mfc=fill, label=label)


def _overlay_legend(
    figure: Figure, width: float, height: float, *, truth: bool, faint: bool
) -> None:
    handles = [_dot("prediction", PREDICTION, 3.5, PREDICTION)]
    if faint:
        handles.append(_dot("probably absent", "#2c9c40", 4.5, "none"))
    if truth:
        handles.insert(0, _dot("truth", TRUTH, 6, TRUTH))
        handles.append(Line2D([], [], color="#d8c24a", label="error"))
    figure.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(1 - 0.2 / width, 1 - 0.08 / height),
        ncols=len(handles),
    )


def _shortened(name: str, longest: int = 30) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], float)


def _words(name: str) -> str:
    return name.replace("_", " ").strip() or "unnamed"


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving mean over about a thirtieth of the curve."""
    window = np.ones(2 * (len(values) // 60) + 1)
    weight = np.convolve(np.ones(len(values)), window, "same")
    return np.convolve(values, window, "same") / weight


Curve = tuple[np.ndarray, np.ndarray]


def _series(
    records: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]
) -> tuple[dict[str, dict[str, list[Curve]]], list[Curve], dict[str, int]]:
    """Curves by kind and name, validations, one curve a phase, and each phase's first step.

    Phases that count their steps from zero are laid end to end.
    """
    lines: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for record in records:
        if record.get("kind") in ("train", "validation"):
            # A resumed run repeats steps: what it wrote last is what it went on with.
            phase = lines.setdefault(str(record.get("phase", "")), {})
            phase[record["kind"], int(record["step"])] = record
    panels: dict[str, dict[str, list[Curve]]] = {kind: {} for kind in _PANELS}
    validations: list[Curve] = []
    starts: dict[str, int] = {}
    end = 0
    for phase_name, phase in lines.items():
        offset = end if min(step for _, step in phase) < end else 0
        starts[phase_name] = end
        end = offset + max(step for _, step in phase)
        train = {step + offset: line for (of, step), line in phase.items() if of == "train"}
        for name in dict.fromkeys(name for line in train.values() for name in line):
            if kind := kinds.get(name):
                curves = [*_curve(train, name, positive=_PANELS[kind][1] == "log")]
                if curves:
                    panels[kind].setdefault(name, []).extend(curves)
        scored = {step + offset: r for (kind, step), r in phase.items() if kind == "validation"}
        validations.extend(_curve(scored, "mre_mm", positive=True))
    return panels, validations, starts


def _curve(lines: Mapping[int, Mapping[str, Any]], name: str, *, positive: bool) -> Iterator[Curve]:
    """Steps and values of one number, if the axis (logarithmic where `positive`) can show any."""
    values = {step: lines[step].get(name) for step in sorted(lines)}
    least = 0 if positive else -np.inf
    shown = {s: v for s, v in values.items() if isinstance(v, (int, float)) and least < v < np.inf}
    if shown:
        yield np.array([*shown]), np.array([*shown.values()], float)


def _draw_curves(axes: Axes, curves: Mapping[str, Sequence[Curve]], scale: str) -> None:
    """Lines of several names, each of one piece a phase."""
    logarithmic = scale == "log"
    for color, (name, phases) in zip(cycle(LINES), curves.items(), strict=False):
        for part, (steps, values) in enumerate(phases):
            smooth = np.exp(_smooth(np.log(values))) if logarithmic else _smooth(values)
            axes.plot(steps, values, color=color, lw=0.7, alpha=0.3)
            # One entry in the legend is enough.
            axes.plot(steps, smooth, color=color, lw=1.8, label=None if part else _words(name))
        if len(curves) == 1:
            _name_beside(axes, _words(name), (steps[-1], smooth[-1]), color)
    if logarithmic:
        axes.set_yscale("log")
        _plain_log_ticks(axes, "y")
    elif scale == "percent":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    if len(curves) > 1:
        # Beside the panel: within it there is no place that is free in every run.
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _name_beside(
    axes: Axes, name: str, place: tuple[float, float], color: str, *, right: bool = True
) -> None:
    """The name of a curve, to the right or the left of one of its points."""
    axes.annotate(
        name,
        place,
        (6 if right else -6, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color=color,
        # May stand beside the panel.
        annotation_clip=False,
    )


def _draw_validations(axes: Axes, curves: Sequence[Curve]) -> None:
    for steps, values in curves:
        axes.plot(steps, values, color=METHOD, lw=1.5, marker="o", ms=3.5)
    steps, values = (np.concatenate(part) for part in zip(*curves, strict=True))
    best = values.argmin()
    axes.plot(steps[best], values[best], "o", ms=9, mfc="none", mec=FLOORS[0], mew=1.6)
    axes.set_title(f"best {values[best]:.2f} mm at step {steps[best]:,}", loc="right", size=9)
    axes.set_ylabel("validation MRE (mm)")
    axes.set_yscale("log")
    _plain_log_ticks(axes, "y")


def _plain_log_ticks(axes: Axes, which: str) -> None:
    """Even ticks within a decade, 1, 2, 5, 10 over a few of them, powers of ten over many."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    if high < 6 * low:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1e3 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as a file: "svg", or "png"."""
    file = io.BytesIO()
    if kind == "svg":
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    else:
        # The highest level takes as long as all the drawing, for a tenth of the bytes.
        figure.savefig(file, format="png", pil_kwargs={"compress_level": 3})
    return file.getvalue()
