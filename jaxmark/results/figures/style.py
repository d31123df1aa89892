"""How all figures look, and how they become bytes.

Only matplotlib's object interface is used: no window system, and no state that outlives a call.
Charts are SVG with a transparent ground, so that a page can show them on its own.
"""

import io
from typing import Any

from matplotlib.figure import Figure

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


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as a file: "svg", or "png"."""
    file = io.BytesIO()
    if kind == "svg":
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    else:
        # The highest level takes as long as all the drawing, for a tenth of the bytes.
        figure.savefig(file, format="png", pil_kwargs={"compress_level": 3})
    return file.getvalue()
