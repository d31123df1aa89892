"""Draws synthetic people: those of docs/phantoms.md.

python -m experiments.phantoms.picture --output=docs/phantom.png
python -m experiments.phantoms.picture --kind=coronary --number=0,1,2 --output=docs/coronary.png
python -m experiments.phantoms.picture --kind=cine --number=3 --output=docs/cine.png
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmark.core.geometry import apply_affine
from jaxmark.data.phantoms.cine import cohort as cine
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, PhantomCase, make_case
from jaxmark.data.phantoms.vessels import aorta, coronary
from jaxmark.data.phantoms.vessels.folder import VesselCase

_KIND = flags.DEFINE_enum(
    "kind", "circle", ["circle", "coronary", "aorta", "cine"], "Which phantom."
)
_NUMBER = flags.DEFINE_list("number", ["1"], "Which people; one for the circle.")
_OUTPUT = flags.DEFINE_string("output", "phantom.png", "Where to write.")
_CORONARY_HU, _AORTA_HU = (-200.0, 650.0), (-150.0, 500.0)


def main(_: list[str]) -> None:
    """One figure of the people asked for."""
    numbers = [int(number) for number in _NUMBER.value]
    if _KIND.value == "circle":
        figure = draw_circle(numbers[0])
    elif _KIND.value == "coronary":
        figure = draw_people(numbers, coronary_case, coronary_panels, (19.0, 4.0))
    elif _KIND.value == "cine":
        figure = draw_cine(numbers)
    else:
        figure = draw_people(numbers, aorta_case, aorta_panels, (15.0, 7.5))
    figure.savefig(Path(_OUTPUT.value), dpi=80)


def draw_circle(number: int) -> Figure:
    """Maximum intensity of the MRA from three sides; a slab of the CTA, whose skull hides most."""
    mra, cta = (make_case(CirclePhantom(modality=m), number) for m in ("MRA", "CTA"))
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    for panel, (name, through) in zip(
        axes, (("above", 2), ("front", 1), ("left", 0)), strict=False
    ):
        draw(panel, mra, mra.anatomy.landmarks_mm, through, slice(None), (40, 620))
        panel.set_title(f"MRA from the {name}" if name != "above" else "MRA from above", size=10)
    tips = apply_affine(np.linalg.inv(cta.ijk_to_lps), cta.anatomy.landmarks_mm)[2:4, 2]
    slab = slice(int(tips.min()) - 1, int(tips.max()) + 8)
    draw(axes[3], cta, cta.anatomy.landmarks_mm, 2, slab, (-50, 550))
    axes[3].set_title("CTA, a slab at the carotids' ends", size=10)
    return figure


def draw_people(
    numbers: list[int],
    case_of: Callable[[int], VesselCase],
    panels: Callable[[VesselCase], list[tuple[str, int, slice, tuple[float, float]]]],
    row_size: tuple[float, float],
) -> Figure:
    """A row a person; each panel is a name, the axis seen through, a slab of it and a window."""
    width, height = row_size
    figure = Figure(figsize=(width, height * len(numbers)), layout="constrained")
    rows = None
    for row, number in enumerate(numbers):
        case = case_of(number)
        shown = panels(case)
        if rows is None:
            rows = figure.subplots(len(numbers), len(shown), squeeze=False)
        for axes, (name, through, slab, window) in zip(rows[row], shown, strict=True):
            draw(axes, case, case.landmarks_mm, through, slab, window)
            axes.set_title(f"{number}: {name}", size=10)
    return figure


def coronary_case(number: int) -> VesselCase:
    """A heart at half the resolution, which is more than the picture shows."""
    settings = coronary.CoronaryPhantom(spacing_mm=(0.8, 0.8, 0.8), shape=(256, 256, 256))
    return coronary.make_case(settings, number)


def coronary_panels(case: VesselCase) -> list[tuple[str, int, slice, tuple[float, float]]]:
    """Slices at the landmarks, and maximum intensities of slabs 16 and 40 mm thick."""
    ijk = np.rint(apply_affine(np.linalg.inv(case.ijk_to_lps), case.landmarks_mm)[[0, 2, 4]])
    ostium, commissure, apex = ijk.astype(int).tolist()
    middle = (ostium[2] + apex[2]) // 2
    return [
        ("left ostium, 16 mm", 2, slice(ostium[2] - 10, ostium[2] + 10), _CORONARY_HU),
        ("at the left ostium", 2, slice(ostium[2], ostium[2] + 1), _CORONARY_HU),
        ("through the middle", 2, slice(middle, middle + 1), _CORONARY_HU),
        ("at the apex", 2, slice(apex[2], apex[2] + 1), _CORONARY_HU),
        ("at the non-coronary leaflet", 1, slice(commissure[1], commissure[1] + 1), _CORONARY_HU),
    ]


def aorta_case(number: int) -> VesselCase:
    """A trunk at half the resolution, which is more than the picture shows."""
    settings = aorta.AortaPhantom(spacing_mm=(1.42, 1.42, 1.62), shape=(144, 128, 352))
    return aorta.make_case(settings, number)


def aorta_panels(case: VesselCase) -> list[tuple[str, int, slice, tuple[float, float]]]:
    """A slab of the aorta from the front and from the left, and slices at two branches."""
    ijk = np.rint(apply_affine(np.linalg.inv(case.ijk_to_lps), case.landmarks_mm)[[0, 3, 6]])
    trunk, coeliac, renal = ijk.astype(int).tolist()
    front = slice(min(trunk[1], coeliac[1]) - 12, coeliac[1] + 10)
    return [
        ("from the front, a slab", 1, front, _AORTA_HU),
        ("at the coeliac trunk", 0, slice(coeliac[0] - 3, coeliac[0] + 4), _AORTA_HU),
        ("at the left renal artery", 1, slice(renal[1], renal[1] + 1), _AORTA_HU),
        ("brachiocephalic trunk", 2, slice(trunk[2] - 1, trunk[2] + 2), _AORTA_HU),
        ("left renal artery", 2, slice(renal[2] - 1, renal[2] + 2), _AORTA_HU),
    ]


def draw_cine(numbers: list[int]) -> Figure:
    """A row a scanner and person: both axes at end-diastole and end-systole."""
    shown = [(scanner, number) for scanner in "AB" for number in numbers]
    figure = Figure(figsize=(14, 3.6 * len(shown)), layout="constrained")
    rows = figure.subplots(len(shown), 4, squeeze=False)
    for row, (scanner, number) in zip(rows, shown, strict=True):
        panels = [(view, frame) for view in ("short axis", "long axis") for frame in (0, 1)]
        for axes, (view, frame) in zip(row, panels, strict=True):
            phantom = cine.CinePhantom(view=view, scanner=scanner, frames=2)
            case = cine.make_case(phantom, 2 * number + frame)
            low, high = np.percentile(case.voxels, (0.5, 99.5))
            draw(axes, case, case.landmarks_mm, 2, slice(0, 1), (float(low), float(high)))
            time = ("end-diastole", "end-systole")[frame]
            axes.set_title(f"{scanner}, {case.moment.heart.group}: {view}, {time}", size=10)
    return figure


def draw(
    axes: Axes,
    case: PhantomCase | VesselCase | cine.CineCase,
    landmarks_mm: np.ndarray,
    through: int,
    slab: slice,
    window: tuple[float, float],
) -> None:
    """One projection with the landmarks that lie in the slab."""
    across, upright = (axis for axis in range(3) if axis != through)
    index = [slice(None)] * 3
    index[through] = slab
    image = case.voxels[tuple(index)].max(through).T
    ijk = apply_affine(np.linalg.inv(case.ijk_to_lps), landmarks_mm)
    first, last, _ = slab.indices(case.voxels.shape[through])
    shown = ijk[(ijk[:, through] >= first - 0.5) & (ijk[:, through] < last + 0.5)]
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
