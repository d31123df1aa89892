"""Several evaluated runs on the same cases in one table, with tests of their differences."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from jaxmark.core import metrics
from jaxmark.results.evaluate import read_summary, unit_of
from jaxmark.results.figures import charts
from jaxmark.results.measures.attributes import LANDMARK, SEGMENT, read_attributes_table
from jaxmark.results.measures.points import Points, read_points
from jaxmark.results.measures.segmentation import read_maps
from jaxmark.results.page import chart, interval, mm, p_value, page, percent, table
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_json, write_text_atomic

SCHEMA_VERSION = 1


# Measures of segments: mean Dice of those that the truth has, and shares of right predictions.
SEGMENT_MEASURES = {
    "dice": "Dice",
    "segments_right": "segments told rightly",
    "bifurcations_right": "bifurcations told rightly",
}


class Published(TypedDict):
    """A paper's figures of a method."""

    mre_mm: float
    # The paper's "SD", which may be over points, scans or landmarks.
    sd_mm: float | None
    # Success rates in per cent at the paper's thresholds.
    sdr: list[float]


@dataclass(frozen=True)
class Row:
    """A method: the mean of its runs, which differ only in their seeds."""

    label: str
    # Means over the runs of the figures of `metrics.summarize`.
    summary: dict[str, Any]
    runs: int
    # Standard deviation of the runs' MRE; None with one.
    sd_runs_mm: float | None
    # (N, K), NaN where absent: means over the runs.
    error_mm: np.ndarray
    confused: np.ndarray
    # `metrics.paired_comparison` with the reference, for errors and for confusions; None for the
    # reference itself.
    error_test: dict[str, Any] | None = None
    confusion_test: dict[str, Any] | None = None
    # Name in `SEGMENT_MEASURES` -> means over the runs, (N, S) or (N, K), NaN where there is
    # nothing to measure. Empty for methods without segments.
    segments: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    # The same names -> test against the first row that has the measure; not in that row.
    segment_tests: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    # Names of the N cases, the same in all rows.
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """The first row's MRE minus the second's, on the same points."""

    first: str
    second: str
    difference: float
    interval: list[float]  # 95 %
    p_value: float  # adjusted by `metrics.holm`


def compare(rows: Mapping[str, Sequence[Path]], reference: str) -> list[Row]:
    """Compare methods, label -> evaluated work dirs, with the method `reference`.

    Measures of segments are compared with the first row that has them, since the reference may have
    none.

    Raises InputError where a run is not evaluated, or on other points than the first run.
    """
    loaded = {
        label: [read_points(folder / "evaluation") for folder in rows[label]] for label in rows
    }
    first = next(iter(loaded.values()))[0]
    for label, runs in loaded.items():
        for folder, points in zip(rows[label], runs, strict=True):
            check_same_points(folder, points, first)
    found = [_row(label, runs, rows[label]) for label, runs in loaded.items()]
    _check_same_segments(rows, found)
    first_with = {
        name: next(row for row in found if name in row.segments)
        for name in SEGMENT_MEASURES
        if any(name in row.segments for row in found)
    }
    found = [_segments_tested(row, first_with) for row in found]
    base = next((row for row in found if row.label == reference), None)
    if base is None:
        return found
    return [row if row is base else _tested(row, base) for row in found]


def check_same_points(folder: Path, points: Points, first: Points) -> None:
    """InputError where two runs can't be compared point by point."""
    for what in ("cases", "landmarks"):
        if getattr(points, what) != getattr(first, what):
            raise InputError(folder / "evaluation", f"is of other {what} than the first run's")
    if points.unit != first.unit:
        problem = f"is in {points.unit}, the first run in {first.unit}"
        raise InputError(folder / "evaluation", problem)
    if not np.array_equal(points.truth_mm, first.truth_mm, equal_nan=True):
        raise InputError(folder / "evaluation", "has other true positions than the first run's")


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """All pairs of rows compared on the same points, with p values adjusted for their number.

    Fewer than two scans can't be tested and give no pairs.
    """
    both = list(itertools.combinations(rows, 2))
    tests = [metrics.paired_comparison(a.error_mm, b.error_mm, 0) for a, b in both]
    if any(test["p_value"] is None for test in tests):
        return []
    adjusted = metrics.holm([test["p_value"] for test in tests])
    return [
        Pair(a.label, b.label, test["difference"], test["interval"], p)
        for (a, b), test, p in zip(both, tests, adjusted, strict=True)
    ]


def _row(label: str, runs: Sequence[Points], folders: Sequence[Path]) -> Row:
    summaries = [read_summary(folder / "evaluation") for folder in folders]
    mres = [summary["mre_mm"] for summary in summaries]
    confused = [metrics.confusions(p.truth_mm, p.predicted_mm, p.present) for p in runs]
    return Row(
        label=label,
        summary=_mean(summaries),
        runs=len(runs),
        sd_runs_mm=float(np.std(mres, ddof=1)) if len(runs) > 1 else None,
        error_mm=np.mean([points.error_mm() for points in runs], axis=0),
        confused=np.mean(confused, axis=0),
        segments=_segments(folders, summaries),
        cases=runs[0].cases,
    )


def _segments(
    folders: Sequence[Path], summaries: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Measures of segments averaged over a method's runs; only measures that all runs have.

    Raises:
      InputError: a table is missing or damaged, or two runs' are not of the same cases.
    """
    found: dict[str, list[np.ndarray]] = {}
    for folder, summary in zip(folders, summaries, strict=True):
        evaluated = folder / "evaluation"
        if summary.get("segmentation") is not None:
            found.setdefault("dice", []).append(read_maps(evaluated).of_present("dice"))
        if summary.get("attributes") is not None:
            told = read_attributes_table(evaluated)
            for name, kind in (("segments_right", SEGMENT), ("bifurcations_right", LANDMARK)):
                if kind in told:
                    found.setdefault(name, []).append(told[kind].right())
    whole = {name: tables for name, tables in found.items() if len(tables) == len(folders)}
    for tables in whole.values():
        for folder, values in zip(folders, tables, strict=True):
            _check_same_known(folder, values, tables[0])
    return {name: np.mean(tables, axis=0) for name, tables in whole.items()}


def _check_same_segments(folders: Mapping[str, Sequence[Path]], rows: Sequence[Row]) -> None:
    """InputError where rows can't be compared segment by segment."""
    for name in SEGMENT_MEASURES:
        measured = [row for row in rows if name in row.segments]
        for row in measured:
            _check_same_known(folders[row.label][0], row.segments[name], measured[0].segments[name])


def _check_same_known(folder: Path, values: np.ndarray, first: np.ndarray) -> None:
    if values.shape != first.shape or (np.isnan(values) != np.isnan(first)).any():
        problem = "has other true segments than the first run's: evaluate the same cases"
        raise InputError(folder / "evaluation", problem)


def _tested(row: Row, base: Row) -> Row:
    return dataclasses.replace(
        row,
        error_test=metrics.paired_comparison(row.error_mm, base.error_mm, 0),
        confusion_test=metrics.paired_comparison(row.confused, base.confused, 0),
    )


def _segments_tested(row: Row, first_with: Mapping[str, Row]) -> Row:
    tests = {
        name: metrics.paired_comparison(row.segments[name], base.segments[name], 0)
        for name, base in first_with.items()
        if name in row.segments and row is not base
    }
    return dataclasses.replace(row, segment_tests=tests)


def _mean(trees: Sequence[Any]) -> Any:
    """Trees of one shape -> the mean of each number; other leaves are the first tree's."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: _mean([tree[key] for tree in trees]) for key in first}
    if isinstance(first, list):
        return [_mean(list(items)) for items in zip(*trees, strict=True)]
    numbers = all(isinstance(t, (int, float)) and not isinstance(t, bool) for t in trees)
    return float(np.mean(trees)) if numbers else first


def write_comparison(
    rows: Sequence[Row],
    folder: Path,
    *,
    title: str,
    note: str,
    published: Mapping[str, Published] | None = None,
    more: Sequence["Table"] = (),
    words: Sequence[str] = (),
) -> Path:
    """Write `index.html` and `table.json` into `folder`, and return the page's path.

    `published`: label -> a paper's figures. `more`: tables after those of `tables`. `words`: lines
    before the tables that say their results.
    """
    published = published or {}
    unit = unit_of(rows[0].summary)
    dots = charts.landmark_dots({row.label: row.summary["per_landmark"] for row in rows}, unit)
    sections = [
        (name, table(head, lines, numbers=range(1, len(head))) + f"<p>{escape(meaning)}</p>\n")
        for name, meaning, head, lines in [*tables(rows, published), *more]
    ]
    if words:
        lines = "".join(f"<li>{escape(line)}</li>\n" for line in words)
        sections.insert(0, ("In words", f"<ul>{lines}</ul>\n"))
    sections.append(("Landmarks", chart(dots, "Mean radial error of each landmark by method")))
    write_text_atomic(folder / "index.html", page(title, escape(note), "", sections))
    tree = [
        {
            "label": row.label,
            "runs": row.runs,
            "sd_runs_mm": row.sd_runs_mm,
            **row.summary,
            "error_minus_reference": row.error_test,
            "confusion_minus_reference": row.confusion_test,
            "published": published.get(row.label),
            **({"segments_minus_first": row.segment_tests} if row.segment_tests else {}),
        }
        for row in rows
    ]
    write_json(folder / "table.json", {"schema_version": SCHEMA_VERSION, "rows": tree})
    return folder / "index.html"


# Title, meaning, header, lines.
Table = tuple[str, str, list[str], list[list[str]]]


def tables(rows: Sequence[Row], published: Mapping[str, Published]) -> list[Table]:
    """The tables of a comparison, as text."""
    found = [_figures(rows)]
    if any(row.error_test is not None for row in rows):
        found.append(_differences(rows))
    found += _segment_tables(rows)
    if published:
        found.append(_published(rows, published))
    return found


def _figures(rows: Sequence[Row]) -> Table:
    thresholds = list(rows[0].summary["sdr"])
    several, unit = any(row.runs > 1 for row in rows), unit_of(rows[0].summary)
    head = ["", f"MRE (SD) {unit}", "median", *(f"SDR {t} {unit}" for t in thresholds), "confusion"]
    head += ["runs", "SD of runs"] * several
    lines = []
    for row in rows:
        s = row.summary
        line = [row.label, f"{mm(s['mre_mm'])} ({mm(s['sd_scans_mm'])})", mm(s["median_mm"])]
        line += [percent(s["sdr"][t]) for t in thresholds] + [percent(s["confusion_rate"])]
        lines.append(line + [str(row.runs), mm(row.sd_runs_mm)] * several)
    meaning = (
        "SD: of the scans' means. Confusion: points nearer to another landmark than to theirs."
    )
    return "Methods", meaning, head, lines


def pairs_table(found: Sequence[Pair], labels: Sequence[str], unit: str) -> Table:
    """Each row's MRE minus each column's; in brackets p, adjusted for all pairs."""
    cells = {}
    for pair in found:
        p = p_value(pair.p_value)
        cells[pair.first, pair.second] = f"{mm(pair.difference)} ({p})"
        cells[pair.second, pair.first] = f"{mm(-pair.difference)} ({p})"
    lines = [[row, *(cells.get((row, column), "") for column in labels)] for row in labels]
    meaning = (
        f"Row's MRE minus column's, {unit}, on the same points. In brackets p of Wilcoxon's "
        "signed-rank test on scans' means, adjusted for all pairs (Holm)."
    )
    return "All pairs", meaning, ["", *labels], lines


def _differences(rows: Sequence[Row]) -> Table:
    error = f"MRE ({unit_of(rows[0].summary)})"
    head = ["", error, "95 % interval", "p", "confusion (%)", "95 % interval", "p"]
    lines = []
    for row in rows:
        if row.error_test is None or row.confusion_test is None:
            continue
        e, c = row.error_test, row.confusion_test
        share = {name: c[name] and np.multiply(c[name], 100) for name in ("difference", "interval")}
        line = [row.label, mm(e["difference"]), interval(e), p_value(e["p_value"])]
        lines.append([*line, mm(share["difference"]), interval(share), p_value(c["p_value"])])
    (base,) = (row.label for row in rows if row.error_test is None)
    meaning = (
        "On the same points. Intervals: whole scans drawn with replacement; p: Wilcoxon "
        "signed-rank test on scans' means."
    )
    return f"Differences from {base}", meaning, head, lines


def _segment_tables(rows: Sequence[Row]) -> list[Table]:
    """Tables of the measures of segments; empty if no row has any."""
    shown = [name for name in SEGMENT_MEASURES if any(name in row.segments for row in rows)]
    if not shown:
        return []
    head = ["", *(f"{SEGMENT_MEASURES[name]} (%)" for name in shown), *_SUMMARIES]
    lines = [
        [
            row.label,
            *(mm(_mean_percent(row, name)) for name in shown),
            *(_in_percent(find, row.summary) for find in _SUMMARIES.values()),
        ]
        for row in rows
    ]
    meaning = (
        "Dice: mean over the segments that the truth has. Told rightly: over all segments and "
        "landmarks whose state is known, also those that everyone has. Balanced accuracy: of those "
        "that may be missing, or may be no bifurcation. Consistent: bifurcations that follow from "
        "the predicted segments. 95 % intervals over scans."
    )
    found: list[Table] = [("Segments", meaning, head, lines)]
    for name in shown:
        tested = [row for row in rows if name in row.segment_tests]
        if tested:
            base = next(row.label for row in rows if name in row.segments)
            title = SEGMENT_MEASURES[name]
            meaning = "On the same scans; intervals and p as for the landmarks."
            lines = [_difference(row.label, row.segment_tests[name]) for row in tested]
            head = ["", f"{title} (%)", "95 % interval", "p"]
            found.append((f"{title[0].upper()}{title[1:]}, minus {base}", meaning, head, lines))
    return found


# Column -> function that finds the figure in a summary: {"share" or "mean": ..., "interval": ...}.
_SUMMARIES: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any] | None]] = {
    "clDice of the tree (%)": lambda s: s["segmentation"]["tree"]["cldice"],
    "balanced accuracy, segments (%)": lambda s: s["attributes"]["segments"]["may_change"][
        "balanced_accuracy"
    ],
    "balanced accuracy, bifurcations (%)": lambda s: s["attributes"]["landmarks"]["may_change"][
        "balanced_accuracy"
    ],
    "consistent (%)": lambda s: s["attributes"]["self_consistency"],
}


def _in_percent(find: Callable[[Mapping[str, Any]], Mapping[str, Any] | None], summary: Any) -> str:
    """A figure with its interval; a dash where a method does not have it."""
    try:
        figure = find(summary) or {}
    except (KeyError, TypeError):
        figure = {}
    value = figure.get("share", figure.get("mean"))
    if value is None:
        return mm(None)
    bounds = figure["interval"] and np.multiply(figure["interval"], 100)
    return f"{mm(100 * value)} ({interval({'interval': bounds})})"


def _mean_percent(row: Row, name: str) -> float | None:
    return 100 * float(np.nanmean(row.segments[name])) if name in row.segments else None


def _difference(label: str, test: Mapping[str, Any]) -> list[str]:
    bounds = test["interval"] and np.multiply(test["interval"], 100)
    difference = mm(100 * test["difference"])
    return [label, difference, interval({"interval": bounds}), p_value(test["p_value"])]


def _published(rows: Sequence[Row], published: Mapping[str, Published]) -> Table:
    lines = []
    for row in rows:
        if row.label in published:
            paper = published[row.label]
            spread = "" if paper["sd_mm"] is None else f" ({mm(paper['sd_mm'])})"
            sdr = [f"{value:.1f} %" for value in paper["sdr"]]
            lines.append([row.label, f"{mm(paper['mre_mm'])}{spread}", *sdr])
    thresholds = list(rows[0].summary["sdr"])
    unit = unit_of(rows[0].summary)
    head = ["", f"MRE (SD) {unit}", *(f"SDR {t} {unit}" for t in thresholds)]
    return "Published", "Of the paper, on its own data.", head, lines


def as_text(
    rows: Sequence[Row],
    published: Mapping[str, Published] | None = None,
    more: Sequence[Table] = (),
) -> str:
    """The tables for a terminal, in Markdown; `more` as in `write_comparison`."""
    text = []
    for name, _, head, lines in [*tables(rows, published or {}), *more]:
        marked = (head, ["---"] * len(head), *lines)
        text += [f"{name}:", "", *("| " + " | ".join(line) + " |" for line in marked), ""]
    return "\n".join(text)
