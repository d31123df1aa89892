"""Draws a synthetic person in both modalities: the picture in the README.

python -m experiments.phantoms.picture --output=experiments/phantoms/phantom.png
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmark.core.geometry import apply_affine
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, PhantomCase, make_case

_NUMBER = flags.DEFINE_integer("number", 1, "Which person.")
_OUTPUT = flags.DEFINE_string("output", "phantom.png", "Where to write.")


def main(_: list[str]) -> None:
    """Maximum intensity of the MRA from three sides; a slab of the CTA, whose skull hides most."""
    mra, cta = (make_case(CirclePhantom(modality=m), _NUMBER.value) for m in ("MRA", "CTA"))
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    for panel, (name, through) in zip(
        axes, (("above", 2), ("front", 1), ("left", 0)), strict=False
    ):
        draw(panel, mra, through, slice(None), (40, 620))
        panel.set_title(f"MRA from the {name}" if name != "above" else "MRA from above", size=10)
    tips = apply_affine(np.linalg.inv(cta.ijk_to_lps), cta.anatomy.landmarks_mm)[2:4, 2]
    draw(axes[3], cta, 2, slice(int(tips.min()) - 1, int(tips.max()) + 8), (-50, 550))
    axes[3].set_title("CTA, a slab at the carotids' ends", size=10)
    figure.savefig(Path(_OUTPUT.value), dpi=80)


def draw(
    axes: Axes, case: PhantomCase, through: int, slab: slice, window: tuple[float, float]
) -> None:
    """One projection with the landmarks that lie in the slab."""
    across, upright = (axis for axis in range(3) if axis != through)
    index = [slice(None)] * 3
    index[through] = slab
    image = case.voxels[tuple(index)].max(through).T
    ijk = apply_affine(np.linalg.inv(case.ijk_to_lps), case.anatomy.landmarks_mm)
    first, last, _ = slab.indices(case.voxels.shape[through])
    shown = ijk[(ijk[:, through] >= first) & (ijk[:, through] < last)]
    spacing = np.diag(case.ijk_to_lps)
    axes.imshow(
        image,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="upper" if through == 2 else "lower",
        aspect=spacing[upright] / spacing[across],
    )
    axes.scatter(shown[:, across], shown[:, upright], s=9, color="#f0282d", linewidths=0)
    axes.axis("off")


if __name__ == "__main__":
    app.run(main)
