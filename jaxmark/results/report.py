"""One page about one experiment, in one file that can be mailed, printed and kept."""

import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core import metrics
from jaxmark.results.evaluate import read_summary, unit_of
from jaxmark.results.figures import charts, pictures
from jaxmark.results.folds import ensemble_section, folds_section
from jaxmark.results.measures.points import Points, read_floor_errors, read_points
from jaxmark.results.page import chart, data_uri, interval, mm, p_value, page, percent, table
from jaxmark.results.plan_section import plan_section
from jaxmark.results.predictions import read_learned
from jaxmark.results.segment_sections import segmentation_section, variants_section
from jaxmark.results.shown_cases import LabelCase, OverlayCase, title_of
from jaxmark.results.viewer.section import Viewer, viewer_of
from jaxmark.system.files import json_text, read_json, write_text_atomic
from jaxmark.system.messages import counted
from jaxmark.training.records import METRICS, SPEED, read_records

_PACKAGES = ("jaxmark", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")
_WORST_POINTS = 10
# Path in a work dir.
PAGE = Path("report") / "index.html"

_FIGURES = (
    ("mre_mm", "MRE", "mean radial error over all points"),
    ("median_mm", "median", "half of the points are nearer than this"),
    ("sd_points_mm", "SD of points", "how much single points differ"),
    ("sd_scans_mm", "SD of scans", "how much the scans' means differ"),
    ("sd_landmarks_mm", "SD of landmarks", "how much the landmarks' means differ"),
)

# Split -> what its scans are called, and why their error is not that of new scans.
_SPLITS = {
    "train": ("training scan", "These scans were trained on: on new ones the error is larger."),
    "val": (
        "validation scan",
        "By the error of these scans the checkpoint was chosen: on new ones it is larger. "
        "<code>--mode=crossval</code> tests every scan by a model that has not seen it.",
    ),
    "test": ("test scan", ""),
    "": ("scan", ""),
}


def write_report(
    workdir: Path,
    overlays: Sequence[OverlayCase],
    kinds: Mapping[str, str],
    label_cases: Sequence[LabelCase] = (),
    *,
    split: str = "",
    viewer: bool = False,
) -> Path:
    """Write `workdir/report/index.html` and return its path.

    Reads `config.json`, `evaluation/` and, if they exist, `logs/` and `predictions/learned.json` of
    the work dir, and the logs of a cross-validation's folds. `overlays` are the cases to show,
    usually those of `overlay_cases`; `kinds` are a method's `metrics`, the kinds of the log's
    numbers; `label_cases` are cases to show with label maps. With a `viewer` the page holds the
    voxels of `overlays` that are volumes, and a browser that can shows them in it; else it shows
    pictures. The page refers to nothing outside itself.

    Raises InputError for a missing or damaged file.
    """
    config = read_json(workdir / "config.json")
    summary = read_summary(workdir / "evaluation")
    points = read_points(workdir / "evaluation")
    floor_errors = read_floor_errors(workdir / "evaluation")
    log, speed = read_records(workdir / METRICS), read_records(workdir / SPEED)
    learned = read_learned(workdir / "predictions", points.landmarks)

    unit = points.unit
    curves = charts.training_curves(log, kinds, unit)
    floors = summary["floors"]
    thresholds = [float(threshold) for threshold in summary["sdr"]]
    viewed = viewer_of(points, overlays) if viewer else None
    scan, caution = _SPLITS[split]
    figures = _figures_table(summary, points, floor_errors)
    sections = [
        ("Figures", f"<p>{caution}</p>\n" * bool(caution) + figures),
        ("Folds", folds_section(summary, workdir, kinds)),
        ("The ensemble on the test cases", ensemble_section(summary)),
        (
            "Success detection rate",
            chart(
                charts.sdr_curve(points.error_mm(), floor_errors, thresholds, unit),
                "Share of points within a radius",
            ),
        ),
        ("Cases", _cases(_overlays(points, overlays), viewed)),
        (
            "Landmarks",
            chart(
                charts.per_landmark_bars(
                    summary["per_landmark"],
                    {name: floor["per_landmark"] for name, floor in floors.items()},
                    unit,
                ),
                "Mean radial error of each landmark",
            ),
        ),
        ("Segmentation", segmentation_section(summary.get("segmentation"), label_cases)),
        ("Anatomical variants", variants_section(summary.get("attributes"), workdir)),
        ("Numbers learned of each landmark", _learned(summary, learned)),
        ("Radii and presence: were they right?", _promises(summary, points)),
        (
            f"The {_WORST_POINTS} worst points",
            _worst_points_table(points, planar="unit" in summary),
        ),
        ("All cases", _cases_table(points)),
        ("Training", _training(log, curves)),
        ("Plan", plan_section(workdir, config)),
        ("Settings", _settings(config)),
    ]
    path = workdir / PAGE
    name = str(config.get("name", "experiment"))
    facts = _facts(config, summary, scan, log, speed)
    code = None if viewed is None else viewed.code
    write_text_atomic(path, page(name, _lead(summary), facts, sections, code))
    return path


def _lead(summary: Mapping[str, Any]) -> str:
    """The main result in one sentence."""
    mre = summary["mre_mm"]
    unit = unit_of(summary)
    text = f"<strong>{mm(mre)} {unit}</strong> mean radial error"
    if also := summary.get("also"):
        text += f" ({mm(also['mre'])} {also['unit']})"
    floors = {n: f["mre_mm"] for n, f in summary["floors"].items() if f["mre_mm"] is not None}
    if mre is None or not floors:
        return text
    name = min(floors, key=lambda floor: floors[floor])
    if mre >= floors[name]:
        verdict = "not smaller than"
    else:
        verdict = f"{floors[name] / mre:.1f} times smaller than" if mre else "smaller than"
    return f"{text}, {verdict} that of “{escape(_words(name))}” ({mm(floors[name])} {unit})"


def _facts(
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    scan: str,
    log: Sequence[Mapping[str, Any]],
    speed: Sequence[Mapping[str, Any]],
) -> str:
    method = config.get("method")
    train = [record for record in log if record.get("kind") == "train"]
    rates = [r["volumes_per_s"] for r in speed if isinstance(r.get("volumes_per_s"), (int, float))]
    facts = [
        str(method["class"]) if isinstance(method, dict) and "class" in method else "",
        counted(summary["n_scans"], scan),
        counted(len(summary["per_landmark"]), "landmark"),
        counted(summary["n_points"], "point"),
        f"{max(int(r['step']) for r in train):,} steps" if train else "",
        f"{np.median(rates):.3g} volumes/s in training (median)" if rates else "",
    ]
    return " · ".join(escape(fact) for fact in facts if fact)


def _figures_table(
    summary: Mapping[str, Any], points: Points, floor_errors: Mapping[str, np.ndarray]
) -> str:
    columns, unit = [summary, *summary["floors"].values()], points.unit
    rows = [
        [f"{label} ({unit})", *(mm(column[key]) for column in columns), meaning]
        for key, label, meaning in _FIGURES
    ]
    for threshold in summary["sdr"]:
        shares = (percent(column["sdr"][threshold]) for column in columns)
        rows.append([f"SDR at {threshold} {unit}", *shares, f"points within {threshold} {unit}"])
    rows += _also_rows(summary)
    shares = (percent(column["confusion_rate"]) for column in columns)
    meaning = "points nearer to another landmark than to their own"
    rows.append(["confusion rate", *shares, meaning])
    if floor_errors:
        tests = [metrics.paired_comparison(points.error_mm(), e, 0) for e in floor_errors.values()]
        meaning = "this method's MRE minus the baseline's"
        rows.append([f"difference ({unit})", "", *(mm(t["difference"]) for t in tests), meaning])
        meaning = "of that difference: scans drawn with replacement"
        rows.append([f"95 % interval ({unit})", "", *map(interval, tests), meaning])
        meaning = "Wilcoxon signed-rank test on scans' means"
        rows.append(["p", "", *(p_value(t["p_value"]) for t in tests), meaning])
    head = ["", "this method", *map(_words, summary["floors"]), "meaning"]
    return table(head, rows, numbers=range(1, len(columns) + 1))


def _also_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The method's figures on pictures in their other unit."""
    also, floors = summary.get("also"), [""] * len(summary["floors"])
    if not also:
        return []
    unit = also["unit"]
    rows = [[f"MRE ({unit})", mm(also["mre"]), *floors, "the same errors in the other unit"]]
    rows.append([f"median ({unit})", mm(also["median"]), *floors, ""])
    for threshold, share in also["sdr"].items():
        rows.append([f"SDR at {threshold} {unit}", percent(share), *floors, ""])
    return rows


def _promises(summary: Mapping[str, Any], points: Points) -> str:
    """Were radii and probabilities of presence, learned on validation cases, right on these?"""
    parts = []
    kept, known = summary["coverage"], summary["presence"]
    if kept is not None:
        bounds = kept["interval"]
        spread = f" (95 % interval {percent(bounds[0])} to {percent(bounds[1])})" if bounds else ""
        count = kept["n_unstated"]
        unstated = f" {count} points have none: too few validation cases." * bool(count)
        parts.append(
            f"<p>Radii are stated to hold the truth in {100 * kept['nominal']:g} % of cases. They "
            f"held it in {percent(kept['share'])}{spread} of {kept['n_points']} points; the mean "
            f"radius is {mm(kept['mean_radius_mm'])} {unit_of(summary)}.{unstated}</p>\n"
        )
        parts.append(_by_radius(kept, points))
        rows = [
            [row["name"], str(own["n"]), mm(own["radius_mm"]), percent(own["share"])]
            for row, own in zip(summary["per_landmark"], kept["per_landmark"], strict=True)
        ]
        radius = f"radius ({unit_of(summary)})"
        table_of_radii = table(["landmark", "points", radius, "held"], rows, (1, 2, 3))
        parts.append(f"<details><summary>Radius by landmark</summary>{table_of_radii}</details>\n")
    if known is not None:
        auc = "–" if known["auc"] is None else f"{known['auc']:.3f}"
        parts.append(
            f"<p>Presence of {known['n_present']} present and {known['n_absent']} absent "
            f"landmarks: area under the ROC curve {auc}, right at 0.5 in "
            f"{percent(known['accuracy'])}, Brier score {known['brier']:.3f} (stating the overall "
            f"share each time: {known['brier_base']:.3f}).</p>\n"
        )
        rows = [
            [f"{tenth / 10:g} to {(tenth + 1) / 10:g}", str(row["n"]), *map(percent, shares)]
            for tenth, row in enumerate(known["bins"])
            if row["n"]
            for shares in [(row["stated"], row["observed"])]
        ]
        parts.append(table(["stated", "landmarks", "mean stated", "present"], rows, (1, 2, 3)))
    return "".join(parts)


def _by_radius(kept: Mapping[str, Any], points: Points) -> str:
    """How often small, middle and large radii held the truth."""
    # Evaluations of earlier versions lack it.
    thirds = kept.get("by_radius")
    if not thirds or not kept["n_points"]:
        return ""
    names = ("smallest radii", "in between", "largest radii")
    rows = [
        [name, str(own["n"]), mm(own["radius_mm"]), percent(own["share"]), mm(own["median_mm"])]
        for name, own in zip(names, thirds, strict=True)
    ]
    unit = points.unit
    head = ["third of the points", "points", f"mean radius ({unit})", "held"]
    body = table([*head, f"median error ({unit})"], rows, (1, 2, 3, 4))
    drawn = charts.errors_by_radius(points.error_mm(), points.radius_mm, unit)
    return body + chart(drawn, "Errors over stated radii: above the line the radius did not hold")


def _learned(summary: Mapping[str, Any], learned: Mapping[str, Mapping[str, float]]) -> str:
    """Numbers that a method learned of each landmark, beside the landmark's error."""
    from scipy.stats import spearmanr  # half a second, so only where it is needed

    if not learned:
        return ""
    error = {own["name"]: own["mre_mm"] for own in summary["per_landmark"]}
    rows = [
        [name, mm(error[name]), *(f"{values[name]:.3g}" for values in learned.values())]
        for name in error
    ]
    head = f"MRE ({unit_of(summary)})"
    body = table(["landmark", head, *map(_words, learned)], rows, range(1, 2 + len(learned)))
    found = [name for name in error if error[name] is not None]
    for number, values in learned.items():
        rank = spearmanr([values[name] for name in found], [error[name] for name in found])
        text = f"Rank correlation of {_words(number)} and MRE: {rank.statistic:.2f}"
        body += f"<p>{escape(text)}</p>\n" if np.isfinite(rank.statistic) else ""
    return body


def _training(log: Sequence[Mapping[str, Any]], curves: bytes | None) -> str:
    """Curves of the log, and its warnings below."""
    if not curves:
        return ""
    warnings = [
        f'<p class="warning">Step {r["step"]}: {escape(str(r.get("message", "")))}</p>\n'
        for r in log
        if r["kind"] == "warning"
    ]
    return chart(curves, "Logged numbers over the steps") + "".join(warnings)


def _cases(figures: str, viewed: Viewer | None) -> str:
    """The viewer, and pictures for browsers without it."""
    if viewed is None:
        return figures
    return f'{viewed.html}<div class="viewer-pictures">\n{figures}</div>\n'


def _overlays(points: Points, overlays: Sequence[OverlayCase]) -> str:
    errors = dict(zip(points.cases, points.error_mm(), strict=True))
    drawn = []
    for case in overlays:
        title = title_of(case, points)
        captions = list(case.doubts)
        row = errors.get(case.name)
        if row is not None and np.isfinite(row).any():
            worst = int(np.nanargmax(row))
            captions.insert(0, f"worst: {points.landmarks[worst]}, {row[worst]:.2f} {points.unit}")
        png = pictures.overlay(
            case.image,
            case.spacing_mm,
            case.predicted_ijk,
            title,
            truth_ijk=case.truth_ijk,
            unit=points.unit,
            origin_mm=case.origin_mm,
        )
        drawn.append(
            f'<figure class="scan"><img src="{data_uri(png, "image/png")}" alt="{escape(title)}">'
            f"<figcaption>{escape('; '.join(captions))}</figcaption></figure>\n"
        )
    return "".join(drawn)


def _worst_points_table(points: Points, *, planar: bool) -> str:
    errors = points.error_mm()
    nearest = metrics.nearest_landmark(points.truth_mm, points.predicted_mm, points.present)
    axes = 2 if planar else 3
    order = np.argsort(np.nan_to_num(-errors, nan=np.inf), axis=None, kind="stable")
    rows = []
    for n, k in zip(*np.unravel_index(order[:_WORST_POINTS], errors.shape), strict=True):
        if np.isfinite(errors[n, k]):
            rows.append(
                [
                    points.cases[n],
                    points.landmarks[k],
                    mm(errors[n, k]),
                    f"{points.score[n, k]:.3g}",
                    points.landmarks[nearest[n, k]] if nearest[n, k] != k else "",
                    _position(points.predicted_mm[n, k], axes),
                    _position(points.truth_mm[n, k], axes),
                ]
            )
    error = f"error ({points.unit})"
    head = ["case", "landmark", error, "score", "confused with", "predicted", "true"]
    note = "<p>Positions are LPS millimetres of the scanner.</p>"
    if axes == 2:
        unit = "millimetres" if points.unit == "mm" else "pixels"
        note = f"<p>Positions are {unit} from the picture's first pixel: right, down.</p>"
    return table(head, rows, numbers=(2, 3, 5, 6)) + note


def _cases_table(points: Points) -> str:
    rows: list[tuple[float, list[str]]] = []
    for case, row in zip(points.cases, points.error_mm(), strict=True):
        n = int(np.isfinite(row).sum())
        if not n:
            rows.append((-1.0, [case, "0", "–", "–", "–", ""]))
            continue
        worst = int(np.nanargmax(row))
        middle = [mm(np.nanmean(row)), mm(np.nanmedian(row)), mm(row[worst])]
        rows.append((np.nanmean(row), [case, str(n), *middle, points.landmarks[worst]]))
    figures = [f"{name} ({points.unit})" for name in ("mean", "median", "largest")]
    head = ["case", "landmarks", *figures, "at"]
    ranked = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return table(head, ranked, numbers=(1, 2, 3, 4))


def _settings(config: Mapping[str, Any]) -> str:
    text = escape(json_text(config))
    versions = [["Python", platform.python_version()]]
    for package in _PACKAGES:
        try:
            versions.append([package, metadata.version(package)])
        except metadata.PackageNotFoundError:
            continue
    return (
        f"<details><summary>Config</summary><pre>{text}</pre></details>\n"
        "<details><summary>Versions that evaluated</summary>"
        f"{table(['package', 'version'], versions)}</details>"
    )


def _position(position_mm: np.ndarray, axes: int) -> str:
    return ", ".join(f"{value:.1f}".replace("-", "−") for value in position_mm[:axes])


def _words(name: str) -> str:
    return name.replace("_", " ")
