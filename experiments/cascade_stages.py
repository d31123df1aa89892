"""What the second stage of a trained cascade adds to the first, case by case and as a picture.

    python -m experiments.cascade_stages --workdir=runs/vessel_cascade --output=stages.png

Reads the predictions of the evaluated split, prints the mean radial error of each decoder with
paired intervals, and draws some landmarks of one case: a patch around the truth (ring), the first
stage's place (cross) and the second one's (dot). Without --case the case with the median error.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmark.core import metrics
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import PreparedCase
from jaxmark.data.multiscale import first_voxels, patch
from jaxmark.methods.cascade import Cascade
from jaxmark.results.figures.style import MARK, PREDICTION, STYLE, TRUTH, rendered
from jaxmark.results.measures.points import Points, points_of
from jaxmark.results.shown_cases import choose_cases
from jaxmark.system.errors import InputError
from jaxmark.system.files import replacing
from jaxmark.trained import get_config
from jaxmark.workflow import prepare

FINAL, FIRST = "subvoxel", "stage1"
MOST_COLUMNS = 6


def main(argv: Sequence[str]) -> None:
    """See above; exit code 1 for a work dir that holds no predictions of a cascade."""
    values = flags.FLAGS
    try:
        if len(argv) > 1:
            raise InputError("command line", f"unexpected argument {argv[1]!r}")
        workdir = Path(values.workdir)
        experiment = get_config(str(workdir))
        if not isinstance(experiment.method, Cascade):
            raise InputError(workdir, f"is of {type(experiment.method).__name__}, not of Cascade")
        run = prepare(experiment, workdir)
        _, cases = run.evaluated()
        found = {
            name: points_of(
                cases, run.prepared.landmarks, workdir / "predictions" / f"landmarks_{name}.csv"
            )
            for name in Cascade.decoders
        }
        print(as_text({name: points.error_mm() for name, points in found.items()}))
        names = {name: label for label, name in choose_cases(found[FINAL])}
        chosen = values.case or next((n for n, label in names.items() if label == "median"), "")
        case = next((case for case in cases if case.name == (chosen or cases[0].name)), None)
        if case is None:
            raise InputError(
                "--case", f"{chosen!r} is not one of {', '.join(c.name for c in cases)}"
            )
        if not case.present.any():
            raise InputError("--case", f"{case.name!r} has no landmark to draw")
        picture = draw(case, found, experiment.data.spacing_mm, experiment.method.patch)
        with replacing(Path(values.output)) as temporary:
            temporary.write_bytes(picture)
        print(f"picture of {case.name}: {values.output}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def as_text(error_mm: Mapping[str, np.ndarray]) -> str:
    """Markdown: each decoder's mean error, and the final one minus it; arrays (N, K) mm."""
    lines = ["| decoder | MRE (mm) | median | subvoxel minus this (95 %) |", "|---|---|---|---|"]
    for name, errors in error_mm.items():
        difference = ""
        if name != FINAL:
            test = metrics.paired_comparison(error_mm[FINAL], errors, 0)
            low, high = test["interval"] or (np.nan, np.nan)
            difference = f"{test['difference']:.3f} ({low:.3f} to {high:.3f})"
        middle = f"{np.nanmean(errors):.3f} | {np.nanmedian(errors):.3f}"
        lines.append(f"| {name} | {middle} | {difference} |")
    return "\n".join(lines)


def shown_landmarks(errors_mm: np.ndarray) -> list[int]:
    """Indices of those drawn: the worst, the best, some between; (K,) mm, NaN where absent."""
    ranked = np.argsort(-np.nan_to_num(errors_mm, nan=-1))[: int(np.isfinite(errors_mm).sum())]
    steps = np.linspace(0, len(ranked) - 1, min(MOST_COLUMNS, len(ranked)))
    return sorted(ranked[np.rint(steps).astype(int)].tolist())


def draw(
    case: PreparedCase, found: Mapping[str, Points], spacing_mm: Sequence[float], side: int
) -> bytes:
    """PNG: axial and coronal slices through the truth, one column a landmark."""
    points = found[FINAL]
    row = points.cases.index(case.name)
    shown = shown_landmarks(found[FIRST].error_mm()[row])
    image, to_ijk = case.image(), np.linalg.inv(case.ijk_to_lps)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(shown), 5.4), dpi=100, layout="constrained")
        axes = figure.subplots(2, len(shown), squeeze=False)
        for column, k in enumerate(shown):
            marks = {
                TRUTH: apply_affine(to_ijk, points.truth_mm[row, k]),
                MARK: apply_affine(to_ijk, found[FIRST].predicted_mm[row, k]),
                PREDICTION: apply_affine(to_ijk, points.predicted_mm[row, k]),
            }
            corner = first_voxels(marks[TRUTH], side)
            cube = patch(image, corner, side)
            errors = [found[name].error_mm()[row, k] for name in (FIRST, FINAL)]
            axes[0, column].set_title(
                f"{points.landmarks[k]}\n{errors[0]:.2f} to {errors[1]:.2f} mm", size=9
            )
            for panel, upright in zip(axes[:, column], (1, 2), strict=True):
                _slice(panel, cube, upright, {c: p - corner for c, p in marks.items()}, spacing_mm)
        return rendered(figure, "png")


def _slice(
    panel: Axes,
    cube: np.ndarray,
    upright: int,
    marks: Mapping[str, np.ndarray],
    spacing_mm: Sequence[float],
) -> None:
    """The slice of X and another axis through the truth; up is the head, or the face."""
    through = 3 - upright
    at = int(np.clip(np.rint(marks[TRUTH][through]), 0, cube.shape[through] - 1))
    plane = np.take(cube, at, axis=through).T.astype(np.float32)
    aspect = spacing_mm[upright] / spacing_mm[0]
    panel.imshow(plane, cmap="gray", origin="lower" if upright == 2 else "upper", aspect=aspect)
    panel.plot(*marks[TRUTH][[0, upright]], "o", ms=9, mfc="none", mec=TRUTH, mew=1.6)
    panel.plot(*marks[MARK][[0, upright]], "x", ms=8, mec=MARK, mew=1.8)
    panel.plot(*marks[PREDICTION][[0, upright]], "o", ms=4, mfc=PREDICTION, mec="black", mew=0.5)
    # A place beyond the patch stays beyond the picture.
    panel.set_xlim(-0.5, plane.shape[1] - 0.5)
    limits = (-0.5, plane.shape[0] - 0.5)
    panel.set_ylim(limits if upright == 2 else limits[::-1])
    panel.set_xticks([])
    panel.set_yticks([])


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Of a trained cascade with predictions.", required=True)
    flags.DEFINE_string("case", "", "Which case is drawn; empty: the one with the median error.")
    flags.DEFINE_string("output", "stages.png", "Where the picture is written.")
    app.run(main)
