"""Charts of label maps and attributes, as the bytes of an SVG file."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxmark.results.figures.style import FLOORS, METHOD, STYLE, TRUTH, rendered


def overlap_bars(per_segment: Sequence[Mapping[str, Any]]) -> bytes:
    """SVG: each segment's mean Dice as a bar and clDice as a tick.

    `per_segment`: rows of `measures.segmentation.figures`. Segments that no case has are left out.
    """
    shown = [row for row in per_segment if row["n"]]
    rows = np.arange(len(shown))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.1 + 0.2 * max(len(rows), 1)), layout="constrained")
        axes = figure.add_subplot()
        dice, cldice = (np.array([row[key] for row in shown], float) for key in ("dice", "cldice"))
        axes.barh(rows, dice, height=0.62, color=METHOD, alpha=0.85, label="Dice")
        axes.vlines(cldice, rows - 0.38, rows + 0.38, FLOORS[0], lw=2, label="clDice")
        axes.set_yticks(rows, [str(row["name"]) for row in shown], fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.005)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("mean over cases that have the segment")
        figure.legend(loc="outside upper left", ncols=2)
        return rendered(figure, "svg")


def probability_dots(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> bytes:
    """SVG: predicted probabilities of attributes, one dot for each case.

    `rows`: name, probabilities (N,) and truth (N,) bool of cases whose truth is known. Dots of true
    attributes lie above the line of their row, those of false ones below.
    """
    places = np.arange(len(rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.2 + 0.42 * max(len(rows), 1)), layout="constrained")
        axes = figure.add_subplot()
        axes.hlines(places, 0, 1, "#e4e4e4", lw=1)
        axes.axvline(0.5, color="#888888", lw=0.9, ls=(0, (2, 2)))
        for true, color, marker, side, label in (
            (True, METHOD, "o", -1, "there"),
            (False, TRUTH, "D", 1, "missing"),
        ):
            dots = [
                (share[state == true], np.full((state == true).sum(), place))
                for place, (_, share, state) in zip(places, rows, strict=True)
            ]
            for number, (x, y) in enumerate(dots):
                axes.plot(
                    x,
                    y + side * _spread(x),
                    marker,
                    color=color,
                    ms=4.5,
                    alpha=0.6,
                    mew=0,
                    ls="",
                    # One entry in the legend is enough.
                    label=None if number else label,
                )
        axes.set_yticks(places, [name for name, _, _ in rows], fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-0.01, 1.01)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("predicted probability that the segment is there; 0.5 decides")
        figure.legend(loc="outside upper left", ncols=2)
        return rendered(figure, "svg")


def _spread(shares: np.ndarray) -> np.ndarray:
    """(N,) offsets in 0.08 to 0.38 that separate dots of similar probabilities."""
    order = np.argsort(shares, kind="stable")
    away = np.empty(len(shares))
    away[order] = 0.08 + 0.1 * (np.arange(len(shares)) % 4)
    return away
