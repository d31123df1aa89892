"""Charts of errors and of a training run, as the bytes of an SVG file."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from jaxmark.methods.method import GRADIENT, LENGTH_MM, LOSS, SHARE
from jaxmark.results.figures.style import FLOORS, INK, LINES, METHOD, STYLE, TRUTH, rendered


def per_landmark_bars(
    per_landmark: Sequence[Mapping[str, Any]],
    floors: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    unit: str = "mm",
) -> bytes:
    """SVG: each landmark's mean radial error with one standard deviation on either side.

    `per_landmark` are rows of `metrics.summarize`; `floors` are those of baselines, drawn as ticks.
    Rows keep their order, in which left and right are neighbours; each adds to the height. Lengths
    in this and other charts are in the `unit`.
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
        # Neither one gross error nor a far baseline may squeeze all bars: arrows mark longer
        # whiskers, and only the nearest baseline is shown whole.
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
        axes.set_xlabel(f"radial error ({unit})")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            # Bars come last by default.
            handles[-1:] + handles[:-1],
            labels[-1:] + labels[:-1],
            loc="outside upper left",
            ncols=len(labels),
        )
        return rendered(figure, "svg")


def landmark_dots(methods: Mapping[str, Sequence[Mapping[str, Any]]], unit: str = "mm") -> bytes:
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
        axes.set_xlabel(f"mean radial error ({unit}, logarithmic)")
        figure.legend(loc="outside upper left", ncols=4)
        return rendered(figure, "svg")


def errors_by_radius(errors_mm: np.ndarray, radius_mm: np.ndarray, unit: str = "mm") -> bytes:
    """SVG: each point's error over its stated radius, on logarithmic axes.

    Both arrays have any one shape; points without error or radius are left out. A point above the
    line lies outside of its radius.
    """
    both = np.isfinite(errors_mm) & np.isfinite(radius_mm)
    # Smaller values are drawn as 0.01.
    errors, radii = np.maximum(errors_mm[both], 0.01), np.maximum(radius_mm[both], 0.01)
    held = errors <= radii
    ends = np.array([radii.min() / 1.2, radii.max() * 1.2]) if radii.size else np.array([0.1, 1.0])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(ends, ends, color=INK, lw=1.2, label="error = radius")
        for of, color, label in ((held, METHOD, "held"), (~held, TRUTH, "not held")):
            axes.plot(radii[of], errors[of], "o", color=color, ms=3.5, alpha=0.6, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_log_ticks(axes, "x")
        _plain_log_ticks(axes, "y")
        axes.set_xlim(*ends)
        axes.grid()
        axes.set_xlabel(f"stated radius ({unit}, logarithmic)")
        axes.set_ylabel(f"radial error ({unit})")
        figure.legend(loc="outside upper left", ncols=3)
        return rendered(figure, "svg")


def sdr_curve(
    errors_mm: np.ndarray,
    floors: Mapping[str, np.ndarray],
    thresholds_mm: Sequence[float],
    unit: str = "mm",
) -> bytes:
    """SVG: share of points found within a radius, over all radii, with the thresholds marked.

    Errors are mm of any shape, NaN where absent; `floors` are errors of baselines. The radius axis
    is logarithmic: a good method, a baseline and a gross error differ by factors of ten.
    """
    curves = {"this method": errors_mm, **{_words(name): floor for name, floor in floors.items()}}
    points = {name: np.sort(e[np.isfinite(e)]) for name, e in curves.items()}
    everything = np.concatenate([*points.values(), np.asarray(thresholds_mm, float), [1.0]])
    # Annotators do not agree to a tenth of a millimetre, so the axis starts there at the earliest.
    least = float(np.clip(np.quantile(everything, 0.005), 0.1, 1.0))
    most = max(float(everything.max()), 10 * least)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for threshold in thresholds_mm:
            axes.axvline(threshold, color="#aaaaaa", lw=0.9, ls=(0, (2, 2)))
            axes.text(threshold, 1.015, f"{threshold:g}", ha="center", va="bottom", size=9)
        colors, dashes = cycle((METHOD, *FLOORS)), chain("-", cycle(("--", "-.", ":")))
        # Each name has its own height, so that names of similar curves do not collide.
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
        axes.set_xlabel(f"radius ({unit}, logarithmic); dashed: SDR thresholds")
        axes.set_ylabel("points within the radius")
        return rendered(figure, "svg")


# Kind of a log's numbers -> its panel's title, and the scale of its axis.
_PANELS = {
    LOSS: ("training loss", "log"),
    SHARE: ("cases classified correctly", "percent"),
    GRADIENT: ("gradient", "log"),
    LENGTH_MM: ("length (mm)", "linear"),
}


def training_curves(
    records: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], unit: str = "mm"
) -> bytes | None:
    """SVG: logged numbers over all phases' steps, raw and smoothed, and the validation error.

    `records` are the lines of a log: `kind` "train" with numbers, "validation" with `mre_mm`, and
    "warning", drawn as a line; all with `phase` and `step`. `kinds`, a method's `metrics`, gives
    the kind of each number. Numbers of one kind share a panel; numbers without a kind are not
    drawn. None if there is nothing to draw.
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
            title = title.replace("(mm)", f"({unit})")
            _draw_curves(axes, curves, scale)
            axes.set_ylabel(title)
        if validations:
            _draw_validations(grid[-1], validations, unit)
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


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], float)


def _words(name: str) -> str:
    return name.replace("_", " ").strip() or "unnamed"


def _smooth(values: np.ndarray) -> np.ndarray:
    """The moving mean over about a thirtieth of the curve."""
    window = np.ones(2 * (len(values) // 60) + 1)
    weight = np.convolve(np.ones(len(values)), window, "same")
    return np.convolve(values, window, "same") / weight


Curve = tuple[np.ndarray, np.ndarray]


def _series(
    records: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]
) -> tuple[dict[str, dict[str, list[Curve]]], list[Curve], dict[str, int]]:
    """Curves by kind and name, validation curves, and each phase's first step; a curve a phase.

    Phases that count their steps from zero are joined end to end.
    """
    lines: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for record in records:
        if record.get("kind") in ("train", "validation"):
            # A resumed run repeats steps; the last record of a step is the valid one.
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
    """Draw lines of several names, each with one piece for each phase."""
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
        # Beside the panel, since no place inside is free in every run.
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _name_beside(
    axes: Axes, name: str, place: tuple[float, float], color: str, *, right: bool = True
) -> None:
    """Write a curve's name to the right or the left of one of its points."""
    axes.annotate(
        name,
        place,
        (6 if right else -6, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color=color,
        # The name may lie beside the panel.
        annotation_clip=False,
    )


def _draw_validations(axes: Axes, curves: Sequence[Curve], unit: str) -> None:
    for steps, values in curves:
        axes.plot(steps, values, color=METHOD, lw=1.5, marker="o", ms=3.5)
    steps, values = (np.concatenate(part) for part in zip(*curves, strict=True))
    best = values.argmin()
    axes.plot(steps[best], values[best], "o", ms=9, mfc="none", mec=FLOORS[0], mew=1.6)
    axes.set_title(f"best {values[best]:.2f} {unit} at step {steps[best]:,}", loc="right", size=9)
    axes.set_ylabel(f"validation MRE ({unit})")
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
