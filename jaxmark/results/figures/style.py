"""The style of all figures, and their conversion to bytes.

Only matplotlib's object interface is used: no window system, and no state between calls. Charts are
SVG with a transparent background, so that they fit a page's own.
"""

import io
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's colours, which all kinds of colour vision can distinguish.
METHOD = "#0072b2"

FLOORS = ("#d55e00", "#8a8a8a", "#cc79a7", "#009e73")

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

INK = "#333333"

# Truth is dark and large, prediction light and small: they also differ in size and brightness.
TRUTH = "#f0282d"

PREDICTION = "#4dff6a"

MARK = "#00c8ff"

OWN = "#ffd166"


# Any: matplotlib's type of a key lists all names that it knows, and does not take a plain dict.
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
    # Names come from data: a dollar sign is no formula.
    "text.parse_math": False,
    # The same figures give the same bytes.
    "svg.hashsalt": "jaxmark",
}


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as a file: "svg", or "png"."""
    file = io.BytesIO()
    if kind == "svg":
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    else:
        # The highest level takes as long as all the drawing, for a tenth of the bytes.
        figure.savefig(file, format="png", pil_kwargs={"compress_level": 3})
    return file.getvalue()
