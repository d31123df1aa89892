"""Pictures of doubtful annotations: annotated and expected positions of points."""

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxmark.results.figures.style import PREDICTION, STYLE, TRUTH, rendered


@dataclasses.dataclass(frozen=True)
class View:
    """A plane or a projection of a scan, with points on it."""

    name: str
    axes: tuple[str, str]  # labels of the horizontal and the vertical axis
    image: np.ndarray  # (W, H)
    extent: tuple[float, float, float, float]  # left, right, low, high
    annotated: np.ndarray  # (P, 2)
    expected: np.ndarray  # (P, 2); NaN: unknown
    downwards: bool  # the vertical axis grows downwards


def doubt(views: Sequence[View]) -> bytes:
    """PNG: views beside each other; annotated points are red, expected ones green rings."""
    width, height, left = 3.0 * len(views) + 0.2, 3.3, 0.5
    panel = (width - 0.1) / len(views)
    with matplotlib.rc_context({**STYLE, "font.size": 8, "axes.titlesize": 9}):
        figure = Figure(figsize=(width, height), dpi=90, facecolor="white")
        for number, view in enumerate(views):
            bounds = ((number * panel + left) / width, 0.4 / height)
            sides = ((panel - left - 0.05) / width, (height - 1.0) / height)
            axes = figure.add_axes((*bounds, *sides))
            low, high = np.percentile(view.image, [1, 99.7])
            axes.imshow(
                view.image.T,
                cmap="gray",
                origin="lower",
                aspect="equal",
                extent=view.extent,
                vmin=low,
                vmax=max(high, low + 1e-6),
                interpolation="bilinear",
            )
            axes.autoscale(False)
            for start, end in zip(view.annotated, view.expected, strict=True):
                axes.plot(*np.stack([start, end]).T, color="#ffe066", lw=1.0, zorder=3)
            axes.plot(*view.expected.T, "o", ms=6, mfc="none", mec=PREDICTION, mew=1.3, zorder=4)
            size = 5 if len(view.annotated) < 4 else 2.5
            axes.plot(*view.annotated.T, "o", ms=size, color=TRUTH, zorder=5)
            if view.downwards:
                axes.invert_yaxis()
            axes.set_title(view.name, loc="left", pad=3)
            axes.set_xlabel(view.axes[0], labelpad=1)
            axes.set_ylabel(view.axes[1], labelpad=1)
        handles = [Line2D([], [], marker="o", ls="", ms=5, color=TRUTH, label="annotated")]
        if any(np.isfinite(view.expected).any() for view in views):
            ring = Line2D([], [], marker="o", ls="", ms=6, mfc="none", mec=PREDICTION, mew=1.3)
            ring.set_label("expected")
            handles.append(ring)
        figure.legend(handles=handles, loc="upper right", ncols=2, borderaxespad=0.2)
        return rendered(figure, "png")
