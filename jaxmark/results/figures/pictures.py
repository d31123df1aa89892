"""Pictures of scans with landmarks and label maps, as the bytes of a PNG file."""

import colorsys
import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from jaxmark.results.figures.style import MARK, OWN, PREDICTION, STYLE, TRUTH, rendered

# Columns of names below a picture with numbered points.
_KEY_COLUMNS = 6

# Margin around a scan that fills little of its volume.
_RIM_VOXELS = 4

# Columns of the key of segments' colours.
_COLOR_COLUMNS = 10


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
    unit: str = "mm",
    origin_mm: np.ndarray | None = None,
) -> bytes:
    """PNG, 1400 pixels wide: three maximum intensity projections with landmarks on them.

    A picture (X, Y, 1) is shown in one panel, x to the right and y downwards. Its axes have the
    positions of its tables of landmarks: `origin_mm` (3,) is the position of the first voxel. Axes
    of a volume count from the first voxel.

    `image` (X, Y, Z), x towards the patient's left, y towards the back, z towards the head;
    `predicted_ijk`, `truth_ijk` (K, 3) voxels; NaN is not drawn. With `names` points are numbered,
    with a key below; `faint` (K,) points are rings. `segments` are translucent colours below the
    points; each view shows the segment nearest to the viewer. Views are those of radiology: the
    patient's right is on the left of the coronal and axial views, the head is up, the face is on
    the left of the sagittal and at the top of the axial view. All have one scale.
    """
    image = np.nan_to_num(np.asarray(image, np.float32))
    planar = image.shape[2] == 1
    first_mm = np.zeros(3) if origin_mm is None or not planar else origin_mm
    predicted_mm = np.asarray(predicted_ijk) * spacing_mm + first_mm
    truth_mm = None if truth_ijk is None else np.asarray(truth_ijk) * spacing_mm + first_mm
    if faint is None:
        faint = np.zeros(len(predicted_mm), bool)
    if not planar and segments is None:
        box = box_of_scan(image, np.asarray(predicted_ijk))
        image = image[box]
        first_mm = np.array([side.start for side in box]) * spacing_mm
    size_mm = np.array(image.shape) * spacing_mm
    # (name, horizontal axis, vertical axis)
    views = [("", 0, 1)] if planar else [("coronal", 0, 2), ("sagittal", 1, 2), ("axial", 0, 1)]

    # Inches: the panels share the width between the margins.
    key_rows = -(-len(names) // _KEY_COLUMNS)
    width, left, gap, top, bottom = 14.0, 0.65, 0.7, 0.75, 0.55
    drawn = [] if segments is None else segments.drawn()
    color_rows = -(-len(drawn) // _COLOR_COLUMNS)
    color_height = 0.2 * color_rows + 0.1 * bool(color_rows)
    key_height = 0.2 * key_rows + 0.1 * bool(key_rows) + color_height
    room = width - left - gap * (len(views) - 1) - 0.25
    widest = sum(size_mm[across] for _, across, _ in views)
    highest = max(size_mm[upright] for _, _, upright in views)
    # Without a limit a long and thin volume would fill several screens.
    scale = min(room / widest, 10.0 / highest)
    height = highest * scale + top + bottom + key_height

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
        # A picture takes the whole width.
        x = left + planar * (room - widest * scale) / 2
        for name, across, upright in views:
            panel = size_mm[across] * scale, size_mm[upright] * scale
            y = height - top - panel[1]
            axes = figure.add_axes(
                (x / width, y / height, panel[0] / width, panel[1] / height), label=name
            )
            x += panel[0] + gap
            _project(axes, image, spacing_mm, first_mm, across, upright)
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
            if planar:
                _name_axes(axes, unit)
            else:
                _name_sides(axes, across, upright)
                axes.set_title(name, loc="left")
        for number, name in enumerate(names):
            x, y = _entry(figure, left, key_height, number, key_rows, _KEY_COLUMNS)
            # Short, for lack of space; the legend explains it.
            absent = " (absent?)" * bool(faint[number])
            figure.text(x, y, f"{number + 1}  {_shortened(name)}{absent}", size=9, va="center")
        for number, (name, color) in enumerate(drawn):
            x, y = _entry(figure, left, color_height, number, color_rows, _COLOR_COLUMNS)
            figure.add_artist(Line2D([x], [y], marker="s", ms=7, color=color))
            figure.text(x + 0.12 / width, y, _shortened(name, 18), size=9, va="center")
        room_px = width * figure.dpi
        if len(predicted_mm):
            legend = _overlay_legend(
                figure, width, height, truth=truth_mm is not None, faint=bool(faint.any())
            )
            room_px = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).x0
        _title_within(figure, left / width, 1 - 0.3 / height, title, room_px)
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
    """(count, 3) RGB in [0, 1]; neighbours in the list, such as R and L, have different hues."""
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
    axial: np.ndarray  # (X, Y) maximum intensity projections, in [0, 1]; or a picture
    coronal: np.ndarray | None  # (X, Z); None for a picture
    doubtful: bool
    own_ijk: np.ndarray | None = None  # (K, 3) voxels: its own landmarks, NaN where missing
    # (X, Y) and (X, Z) uint8: its label map by `seen_labels`.
    labels: tuple[np.ndarray, np.ndarray] | None = None
    segments: int = 0  # number of segments
    registered: bool = False  # the title has the quality of the registration


_SHEET_QUALITY = "number: quality of the registration; "
_SHEET_MARKS = (
    "blue dots: mean landmarks; yellow rings: the case's own landmarks; red frame: doubtful, see "
    "cases.csv"
)
_SHEET_LABELS = "; tinted: segments of its label map"

_LABEL_OPACITY = 0.5


def contact_sheet(
    tiles: Sequence[Tile], spacing_mm: Sequence[float], marks_ijk: np.ndarray, title: str
) -> bytes:
    """PNG: a grid of cases, axial and coronal, with the same marks on all.

    `marks_ijk` (K, 3) voxels, such as the mean landmarks: in aligned cases they mark the same
    anatomy. A case's own landmarks are rings, which should lie around them. Doubtful cases have a
    red frame. Views as in `overlay`.
    """
    nx, ny = tiles[0].axial.shape
    planar = tiles[0].coronal is None
    nz = 0 if tiles[0].coronal is None else tiles[0].coronal.shape[1]
    sx, sy, sz = spacing_mm
    # Voxels of x; other axes are stretched to the same millimetres.
    high_y, high_z = ny * sy / sx, nz * sz / sx
    wide, high = (1.0 if planar else 2.04) * nx, 1.16 * max(high_y, high_z)
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
            places = [(x, x + nx, y + high_y, y), (right, right + nx, y + high_z, y)]
            places = places[:1] if planar else places
            _draw_tile(axes, tile, places)
            for ijk, ring in ((tile.own_ijk, True), (marks_ijk, False)):
                if ijk is None:
                    continue
                i, j, k = (np.asarray(ijk) + 0.5).T
                at = x + i, y + j * sy / sx
                if not planar:
                    at = (
                        np.concatenate([at[0], right + i]),
                        np.concatenate([at[1], y + high_z - k * sz / sx]),
                    )
                if ring:
                    axes.plot(*at, "o", ms=3.4, mfc="none", mec=OWN, mew=0.7)
                else:
                    axes.scatter(*at, s=5, color=MARK, linewidths=0)
            axes.text(
                x, y - 0.02 * high, tile.title, size=8, color=TRUTH if tile.doubtful else "white"
            )
            if tile.doubtful:
                frame = Rectangle((x, y), wide, max(high_y, high_z), fill=False, ec=TRUTH, lw=2)
                axes.add_patch(frame)
        axes.set_xlim(0, columns * wide * 1.03)
        axes.set_ylim(rows * high, 0)
        axes.set_aspect("equal")
        figure.text(0.01, 1 - 0.2 / height, title, size=12, weight="bold", color="white")
        numbered = _SHEET_QUALITY * any(tile.registered for tile in tiles)
        tinted = _SHEET_LABELS * any(tile.labels is not None for tile in tiles)
        marks = numbered + _SHEET_MARKS + tinted
        figure.text(0.01, 1 - 0.4 / height, marks, size=9, color="white")
        return rendered(figure, "png")


def _draw_tile(axes: Axes, tile: Tile, places: Sequence[tuple[float, float, float, float]]) -> None:
    """Draw the two views of a case with its labels at these extents; a picture has one view."""
    views = [tile.axial.T, *([] if tile.coronal is None else [tile.coronal.T[::-1]])]
    for view, extent in zip(views, places, strict=True):
        axes.imshow(view, cmap="gray", extent=extent, vmin=0, vmax=1)
    if tile.labels is not None:
        shown = tile.labels[0].T, tile.labels[1].T[::-1]
        for view, extent in zip(shown, places, strict=True):
            axes.imshow(_tint(view, tile.segments), extent=extent, interpolation="nearest")


def seen_labels(labels: np.ndarray, through: int) -> np.ndarray:
    """A label map (X, Y, Z) seen along an axis: on each line the label nearest to the viewer, or 0.

    Views are from the left, from the front and from below, as in `overlay`.
    """
    depth = np.moveaxis(labels, through, 0)[:: -1 if through == 0 else 1]
    first = (depth > 0).argmax(axis=0)
    return np.take_along_axis(depth, first[None], axis=0)[0]


def _tint(labels: np.ndarray, count: int) -> np.ndarray:
    """(H, W) uint8 -> (H, W, 4): the colours of `count` segments; 0 is transparent."""
    colors = np.zeros((256, 4))
    colors[1 : count + 1, :3], colors[1 : count + 1, 3] = segment_colors(count), _LABEL_OPACITY
    return colors[labels]


@dataclasses.dataclass(frozen=True)
class Plane:
    """Two scans, and their K landmarks, on one plane of the fixed scan's world."""

    name: str
    across: int  # LPS axis that is horizontal
    upright: int  # LPS axis that is vertical
    extent_mm: tuple[float, float, float, float]  # left, right, low, high
    # (W, H) in [0, 1]: the fixed scan; the moving scan before and after mapping.
    fixed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    # (K, 2) mm: landmarks of the fixed scan; of the moving scan before and after mapping.
    fixed_mm: np.ndarray
    before_mm: np.ndarray
    after_mm: np.ndarray


# Colour of the moving scan's white on a checkerboard.
_MOVING_TINT = np.array([1.0, 0.82, 0.5])

_SQUARES = 8  # along the shorter side of a plane


def checkerboard(planes: Sequence[Plane], title: str, rows: tuple[str, str]) -> bytes:
    """PNG, 1400 pixels wide: squares of the fixed scan (grey) and of the moving one (yellow).

    One row is before the alignment and one after, with the titles `rows`. All landmarks are
    projected onto each plane, and lines join the pairs. Views as in `overlay`.
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


def _entry(
    figure: Figure, left: float, top: float, number: int, rows: int, columns: int
) -> tuple[float, float]:
    """The position of an entry of a key, column by column, as shares; `left`, `top` in inches."""
    width, height = figure.get_size_inches()
    column, row = divmod(number, rows)
    return (left + column * (width - left) / columns) / width, (top - 0.2 * row - 0.1) / height


def box_of_scan(image: np.ndarray, points_ijk: np.ndarray) -> tuple[slice, ...]:
    """The box of a prepared volume (X, Y, Z) that holds the scan and the points (K, 3), with a rim.

    A volume is constant around its scan. A box of half the volume or more becomes the whole volume.
    """
    everything = tuple(slice(0, n) for n in image.shape)
    there = image != image[0, 0, 0]
    if not there.any():
        return everything
    box = []
    for axis, n in enumerate(image.shape):
        filled = np.flatnonzero(there.any(tuple({0, 1, 2} - {axis})))
        places = points_ijk[:, axis][np.isfinite(points_ijk[:, axis])]
        low = min([filled[0], *places]) - _RIM_VOXELS
        high = max([filled[-1], *places]) + _RIM_VOXELS + 1
        box.append(slice(max(0, int(low)), min(n, int(np.ceil(high)))))
    shown = np.prod([side.stop - side.start for side in box])
    return tuple(box) if 2 * shown < image.size else everything


def _project(
    axes: Axes,
    image: np.ndarray,
    spacing_mm: Sequence[float],
    first_mm: np.ndarray,
    across: int,
    upright: int,
) -> None:
    """Draw one projection; the centre of the first voxel is at `first_mm` (3,)."""
    (through,) = {0, 1, 2} - {across, upright}
    projection = image.max(axis=through).T
    low, high = np.percentile(projection, [2, 99.7])
    half = np.array([spacing_mm[across], spacing_mm[upright]]) / 2
    near = first_mm[[across, upright]] - half
    far = near + np.array(projection.shape[::-1]) * 2 * half
    axes.imshow(
        projection,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        origin="lower",
        aspect="equal",
        extent=(near[0], far[0], near[1], far[1]),
        interpolation="bilinear",
    )


def _draw_labels(
    axes: Axes, segments: Segmentation, spacing_mm: Sequence[float], across: int, upright: int
) -> None:
    """Draw a label map over a projection of its volume."""
    (through,) = {0, 1, 2} - {across, upright}
    nearest = seen_labels(segments.labels, through).T
    half = np.array([spacing_mm[across], spacing_mm[upright]]) / 2
    far = np.array(nearest.shape[::-1]) * 2 * half - half
    axes.imshow(
        _tint(nearest, len(segments.names)),
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
    """Draw predictions (K, 2) in a panel's millimetres; if known, truth and a line of the error."""
    axes.autoscale(False)
    if truth_mm is not None:
        for start, end in np.stack([truth_mm, predicted_mm], axis=1):
            axes.plot(*zip(start, end, strict=True), color="#ffe066", lw=1.1, zorder=3)
        axes.scatter(truth_mm[:, 0], truth_mm[:, 1], s=34, color=TRUTH, linewidths=0, zorder=4)
    sure, unsure = predicted_mm[~faint], predicted_mm[faint]
    axes.scatter(sure[:, 0], sure[:, 1], s=12, color=PREDICTION, linewidths=0, zorder=4)
    axes.plot(unsure[:, 0], unsure[:, 1], "o", ms=5, mfc="none", mec=PREDICTION, mew=0.9, zorder=4)
    if numbered:
        # Up and to the right of the point, for either direction of the axis.
        low, high = axes.get_ylim()
        aside = 0.008 * (high - low)
        for number, (x, y) in enumerate(predicted_mm, start=1):
            axes.text(x + abs(aside), y + aside, str(number), size=7, color=PREDICTION)


def _name_sides(axes: Axes, across: int, upright: int) -> None:
    """Write letters at the four sides of a plane along two LPS axes, and the axes' names.

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


def _name_axes(axes: Axes, unit: str) -> None:
    """Name the axes of a picture; y grows downwards."""
    axes.invert_yaxis()
    axes.set_xlabel(f"x ({unit})", labelpad=2)
    axes.set_ylabel(f"y ({unit})", labelpad=2)


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


def _title_within(figure: Figure, x: float, y: float, title: str, room_px: float) -> None:
    """A title that ends before `room_px` from the left; a longer one is cut off."""
    text = figure.text(x, y, title, size=13, weight="bold", va="center")
    renderer = FigureCanvasAgg(figure).get_renderer()
    begin_px = x * figure.bbox.width
    length_px = text.get_window_extent(renderer).x1 - begin_px
    if length_px > room_px - begin_px:
        text.set_text(_shortened(title, int(len(title) * (room_px - begin_px) / length_px) - 2))


def _overlay_legend(
    figure: Figure, width: float, height: float, *, truth: bool, faint: bool
) -> Legend:
    handles = [_dot("prediction", PREDICTION, 3.5, PREDICTION)]
    if faint:
        handles.append(_dot("probably absent", "#2c9c40", 4.5, "none"))
    if truth:
        handles.insert(0, _dot("truth", TRUTH, 6, TRUTH))
        handles.append(Line2D([], [], color="#d8c24a", label="error"))
    return figure.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(1 - 0.2 / width, 1 - 0.08 / height),
        ncols=len(handles),
    )


def _shortened(name: str, longest: int = 30) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
