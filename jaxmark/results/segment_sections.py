"""A report's sections on segments: label maps, presence of segments, and forks of arteries."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.results.figures import pictures, segment_charts
from jaxmark.results.measures.attributes import SEGMENT, Attributes, read_attributes_table
from jaxmark.results.page import chart, data_uri, percent, table
from jaxmark.results.shown_cases import LabelCase
from jaxmark.system.messages import counted

# Longer lists of cases are cut.
_MOST_CASES = 100
# Measure of label maps, number of decimals.
_MEASURES = (("dice", 3), ("cldice", 3), ("betti0_error", 2))


def segmentation_section(found: Mapping[str, Any] | None, label_cases: Sequence[LabelCase]) -> str:
    """HTML of the figures of `measures.segmentation`, with example cases; empty without figures."""
    if found is None:
        return ""
    means = [
        [what, *(_with_interval(row[name], decimals) for name, decimals in _MEASURES)]
        for what, row in (
            (f"each of {counted(found['n_present'], 'segment')}", found),
            ("all segments of a scan together", found["tree"]),
        )
    ]
    note = (
        f"Means of {counted(found['n_scans'], 'scan')}, each on its own grid; in brackets the 95 % "
        "interval, whole scans drawn with replacement. Dice: share of voxels in common. clDice: "
        "share of the centrelines inside the other map. Betti-0 error: difference of the numbers "
        "of connected pieces. Means leave out segments that the truth does not have; "
        f"{found['n_invented']} of these have predicted voxels."
    )
    head = ["segment", "scans", "Dice", "clDice", "Betti-0 error", "volume, true (mm³)"]
    head += ["predicted (mm³)", "invented"]
    rows = [
        [
            row["name"],
            str(row["n"]),
            *(_number(row[name], decimals) for name, decimals in _MEASURES),
            *(_number(row[name], 1) for name in ("volume_true_mm3", "volume_predicted_mm3")),
            str(row["n_invented"]),
        ]
        for row in found["per_segment"]
    ]
    bars = chart(
        segment_charts.overlap_bars(found["per_segment"]), "Mean Dice and clDice of each segment"
    )
    drawn = "".join(_pictures(case) for case in label_cases)
    overall = table(["", "Dice", "clDice", "Betti-0 error"], means, (1, 2, 3))
    each = table(head, rows, range(1, len(head)))
    return overall + f"<p>{escape(note)}</p>\n" + bars + each + drawn


def _pictures(case: LabelCase) -> str:
    """The same case with the true labels and with the predicted ones."""
    parts = []
    for labels, what in ((case.truth, "truth"), (case.predicted, "prediction")):
        title = f"{case.title}: {what}"
        png = pictures.overlay(
            case.image,
            case.spacing_mm,
            np.zeros((0, 3)),
            title,
            segments=pictures.Segmentation(labels, case.segments),
        )
        parts.append(
            f'<figure class="scan"><img src="{data_uri(png, "image/png")}" alt="{escape(title)}">'
            "</figure>\n"
        )
    return "".join(parts)


def variants_section(found: Mapping[str, Any] | None, workdir: Path) -> str:
    """HTML of the figures of `measures.attributes`; empty without any.

    Raises:
      InputError: `evaluation/attributes.csv` of the work dir is missing or damaged.
    """
    if found is None:
        return ""
    parts = [_accuracies(found)]
    if (consistent := found["self_consistency"]) is not None:
        agree = (
            "The predicted bifurcation is the one that follows from the predicted segments at "
            f"{_share(consistent)} of the landmarks where it may change."
        )
        parts.append(f"<p>{escape(agree)}</p>\n")
    told = read_attributes_table(workdir / "evaluation").get(SEGMENT)
    if told is not None:
        parts.append(_segments(found["segments"], told))
    return "".join(parts)


def _segments(found: Mapping[str, Any], told: Attributes) -> str:
    """Wrong predictions of segments, with their probabilities and cases."""
    parts = [_confusions(found)]
    rows = [
        (row["name"], told.probability[known, a], told.true[known, a])
        for a, row in enumerate(found["each"])
        if row["may_change"] and (known := told.known[:, a]).any()
    ]
    if rows:
        dots = segment_charts.probability_dots(rows)
        parts.append(chart(dots, "Predicted probability of each segment that may be missing"))
    return "".join([*parts, _missing(told)])


def _accuracies(found: Mapping[str, Any]) -> str:
    lines = []
    for kind, what, few in (
        ("segments", "segments", "those that may be missing"),
        ("landmarks", "bifurcations", "those that may be none"),
    ):
        for part, name in (("all", f"all {what}"), ("may_change", few)):
            if found[kind] is None:
                continue
            row = found[kind][part]
            counts = [str(row["n_true"]), str(row["n_false"])]
            rates = ("accuracy", "balanced_accuracy", "sensitivity", "specificity")
            lines.append([name, *counts, *(_share(row[rate]) for rate in rates)])
    head = ["", "there", "not there", "accuracy", "balanced accuracy", "sensitivity", "specificity"]
    note = (
        "A probability of 0.5 decides. Sensitivity: of those that are there. Specificity: of those "
        "that are not. Balanced accuracy: the mean of both. Published accuracies are those over "
        "all, which is easy where everyone has them. In brackets the 95 % interval, scans drawn "
        "with replacement."
    )
    return table(head, lines, range(1, len(head))) + f"<p>{escape(note)}</p>\n"


def _confusions(found: Mapping[str, Any]) -> str:
    head = ["segment", "there", "of these said to be missing", "missing"]
    head.append("of these said to be there")
    rows = [
        [
            row["name"],
            str(row["n_true"]),
            str(row["n_true"] - row["right_true"]),
            str(row["n_false"]),
            str(row["n_false"] - row["right_false"]),
        ]
        for row in found["each"]
        if row["may_change"]
    ]
    return table(head, rows, range(1, len(head))) if rows else ""


def _missing(told: Attributes) -> str:
    """Cases where a segment is missing, truly or by the prediction."""
    rows = []
    for n, a in np.argwhere(told.known & (~told.true | ~told.said)):
        lacks, said = not told.true[n, a], not told.said[n, a]
        outcome = "found" if lacks and said else "missed" if lacks else "false alarm"
        share = f"{told.probability[n, a]:.3f}"
        rows.append([told.cases[n], f"{told.names[a]} missing", outcome, share])
    if not rows:
        return ""
    rows.sort(key=lambda row: ("missed", "false alarm", "found").index(row[2]))
    counts = ", ".join(
        f"{sum(row[2] == outcome for row in rows)} {words}"
        for outcome, words in (
            ("found", "found"),
            ("missed", "missed"),
            ("false alarm", "false alarms"),
        )
    )
    more = f" The first {_MOST_CASES} are listed." * (len(rows) > _MOST_CASES)
    body = table(
        ["case", "variant", "outcome", "probability of the segment"], rows[:_MOST_CASES], (3,)
    )
    text = f"Missing segments: {counts}."
    return f"<details open><summary>{escape(text)}</summary>{body}<p>{more}</p></details>\n"


def _with_interval(mean: Mapping[str, Any], decimals: int) -> str:
    bounds = mean["interval"]
    spread = f" ({' to '.join(_number(bound, decimals) for bound in bounds)})" if bounds else ""
    return _number(mean["mean"], decimals) + spread


def _share(found: Mapping[str, Any]) -> str:
    bounds = found["interval"]
    spread = f" ({' to '.join(f'{100 * bound:.1f}' for bound in bounds)})" if bounds else ""
    return percent(found["share"]) + spread


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"
