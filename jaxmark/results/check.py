"""Writes the results of `--mode=check`: a table of suspicions, a page and a summary."""

import csv
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.suspicion import LINE, Predictions, Suspicion
from jaxmark.data.annotated import Annotated
from jaxmark.data.landmarks import read_predicted, read_table
from jaxmark.data.notes import first_few
from jaxmark.results.doubt_pictures import pictures_of
from jaxmark.results.measures.points import read_stated
from jaxmark.results.page import data_uri, page, table
from jaxmark.system.errors import InputError, printable
from jaxmark.system.files import write_json, write_text_atomic
from jaxmark.system.messages import counted

SCHEMA_VERSION = 1
TABLE, PAGE, SUMMARY = "suspicions.csv", "index.html", "summary.json"
# Number of rows with pictures, and of lines on the terminal.
PICTURES, LINES = 20, 10
# Kind -> its explanation on the page.
KINDS = {
    "outside": "A point lies outside of its scan.",
    "air": "A point lies far from where it is expected, and the scan shows nothing there.",
    "far": "A point lies far from where the other points, and the look of the scan, put it.",
    "exchanged": "Two landmarks of a case each lie where the other is expected: swapped names.",
    "mirrored": "The whole case is a mirror image of the others: left and right are swapped.",
    "units": "The points fit the scan when read in another unit: voxels and millimetres mixed up.",
    "frame": "The points fit with x and y negated: LPS and RAS mixed up.",
    "axes": "The points fit with axes in another order, or counted from the other end.",
    "size": "All points together are larger or smaller than in any other case.",
    "shape": "The points are arranged as in no other case: many points or names are wrong.",
    "other case": "The points fit this scan as those of another case.",
    "misplaced": "The points do not fit the scan, as a whole, in any way that was tried.",
    "doubled scan": "Two cases have the same scan.",
    "doubled landmarks": "Two cases have the same landmarks, while their scans differ.",
    "distance": "Two landmarks are as far apart as in no other case.",
    "name": "A case has a landmark that no other case has: a misspelt name?",
    "missing": "A case lacks points that others have, and does not say that they are absent.",
    "no landmarks": "There is a scan without landmarks.",
    "no scan": "There are landmarks without a scan.",
}
# Kind -> its sentence; "turned" is a wrong frame that no other reading of the points explains.
_SENTENCES = {
    "outside": "landmark {first} lies outside of its scan",
    "air": "landmark {first} lies {off} from where it is expected, in air or background",
    "far": "landmark {first} lies {off} from where it is expected",
    "exchanged": "landmarks {first} and {second} are exchanged: they fit the other way round",
    "mirrored": "left and right are exchanged in the whole case: half of its points are over {off} "
    "off",
    "units": "the points fit the scan when read otherwise",
    "frame": "the points fit the scan with {detail}",
    "turned": "the case is turned by {detail} degrees from the others: another frame?",
    "axes": "the points fit the scan when read otherwise",
    "size": "all points together are {detail} times the usual size",
    "shape": "the points are arranged as in no other case: half of them are over {off} off",
    "other case": "the landmarks of {other} fit this scan, its own do not",
    "misplaced": "the points do not fit the scan as a whole",
    "doubled scan": "the scan is that of {other}",
    "doubled landmarks": "the landmarks are those of {other} ({off} apart), the scans differ",
    "distance": "landmarks {first} and {second} are {detail} {unit} apart",
    "name": "no other case has a landmark {few}",
    "missing": "lacks {points} that others have: {few}",
}
# Kind -> (the value it needs, the end of its sentence), left out where the value is unknown.
_ENDS = {
    "outside": ("off", "; it is expected {off} away"),
    "units": ("detail", ": {detail}"),
    "axes": ("detail", ": {detail}"),
    "misplaced": ("detail", ": {detail}"),
    "name": ("detail", "; it lacks {detail}, which all others have"),
    "doubled scan": ("off", "; their landmarks are {off} apart"),
}


def words(row: Suspicion, annotated: Annotated, unit: str) -> str:
    """The row as a sentence."""
    names = [repr(annotated.names[k]) for k in row.landmarks]
    first, second = [*names, "", ""][:2]
    known = {
        "first": first,
        "second": second,
        "points": counted(len(names), "point"),
        "few": first_few(names),
        "off": "" if math.isnan(row.off_mm) else f"{row.off_mm:.2f} {unit}",
        "other": "" if row.other is None else repr(annotated.cases[row.other]),
        "detail": row.detail,
        "unit": unit,
    }
    kind = "turned" if row.kind == "frame" and not known["off"] else row.kind
    needed, rest = _ENDS.get(kind, ("", ""))
    sentence = _SENTENCES[kind] + (rest if known.get(needed) else "")
    return sentence.format(**known)


@dataclasses.dataclass(frozen=True)
class Written:
    """Folder and summary of the written results."""

    folder: Path
    summary: dict[str, Any]
    lines: tuple[str, ...]  # for the terminal


def write_check(
    annotated: Annotated, rows: Sequence[Suspicion], folder: Path, unit: str, workers: int = 1
) -> Written:
    """Write `suspicions.csv`, `index.html` and `summary.json`.

    Args:
      rows: in the order of suspicion.
      unit: of lengths, "mm" or "px".
    """
    listed = _listed(annotated, rows, unit)
    columns = ["rank", "case", "landmarks", "kind", "suspicion", f"off_{unit}"]
    columns += [f"expected_{axis}_lps_{unit}" for axis in "xyz"] + ["words"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([rank, *line] for rank, line in enumerate(listed, start=1))
    write_text_atomic(folder / TABLE, text.getvalue())
    above = sum(row.suspicion >= LINE for row in rows)
    points = int(np.isfinite(annotated.points_mm).all(-1).sum())
    summary = {
        "schema_version": SCHEMA_VERSION,
        "cases": len(annotated.cases),
        "landmarks": len(annotated.names),
        "points": points,
        "line": LINE,
        "above_the_line": above,
        "rows": len(listed),
        "kinds": dict(Counter(line[2] for line in listed)),
        "unit": unit,
    }
    write_json(folder / SUMMARY, summary)
    pictures = pictures_of(annotated, rows[:PICTURES], "" if unit == "mm" else unit, workers)
    write_text_atomic(folder / PAGE, _page(summary, columns, listed, pictures))
    lines = [
        f"{counted(len(annotated.cases), 'case')}, {counted(points, 'point')}: "
        f"{counted(above, 'suspicion')}, {counted(len(listed) - above, 'weaker row')}"
    ]
    for line in listed[:LINES]:
        lines.append(printable(f"  {line[3]:>4}  {line[0]}: {line[-1]}"))
    lines.append(f"look at {folder / PAGE}; all rows: {folder / TABLE}")
    return Written(folder, summary, tuple(lines))


def read_predictions(
    workdirs: Sequence[Path], annotated: Annotated, decoder: str, unit: str
) -> Predictions:
    """Predictions of this cohort's cases by runs that were trained without them.

    Reads `predictions/landmarks_<decoder>.csv` of work dirs, and of a cross-validation's `folds/*`
    in them. Of several predictions of a case the last one counts.

    Raises:
      InputError: there is no such table, or one is damaged, or none has a case of this cohort.
    """
    shape = annotated.absent.shape
    points, radius = np.full((*shape, 3), np.nan), np.full(shape, np.nan)
    tables = []
    for workdir in workdirs:
        homes = [workdir, *sorted((workdir / "folds").glob("*"))]
        found = [home / "predictions" / f"landmarks_{decoder}.csv" for home in homes]
        known = [path for path in found if path.is_file()]
        if not known:
            problem = f"holds no predictions/landmarks_{decoder}.csv, nor do its folds/*: "
            raise InputError(workdir, f"{problem}run --mode=predict there first")
        tables += known
    place = {case: i for i, case in enumerate(annotated.cases)}
    for path in tables:
        planar = bool(len(annotated.points_mm)) and unit == "px"
        cases = read_predicted(path, unit) if planar else read_table(path)
        stated = read_stated(path, unit if planar else "")["radius_mm"]
        for case, given in cases.items():
            for k, name in enumerate(annotated.names):
                if case in place and (at := given.get(name)) is not None:
                    points[place[case], k] = at
                    radius[place[case], k] = stated.get((case, name), math.inf)
    if not np.isfinite(points).any():
        raise InputError(tables[0], "predicts no case of this cohort with these landmarks")
    return Predictions(points, radius)


def _listed(annotated: Annotated, rows: Sequence[Suspicion], unit: str) -> list[list[str]]:
    """Cells of all rows: case, landmarks, kind, suspicion, off, expected (3), words."""
    found = []
    for row in rows:
        at = [""] * 3 if row.expected_mm is None else [f"{v:.3f}" for v in row.expected_mm]
        found.append(
            [
                annotated.cases[row.case],
                "; ".join(annotated.names[k] for k in row.landmarks),
                row.kind,
                f"{row.suspicion:.1f}",
                "" if math.isnan(row.off_mm) else f"{row.off_mm:.3f}",
                *at,
                words(row, annotated, unit),
            ]
        )
    nothing = ["0.0", "", "", "", ""]
    for case in annotated.without_landmarks:
        found.append([case, "", "no landmarks", *nothing, "has a scan, but no landmarks"])
    for case, file in annotated.without_scan:
        found.append([case, "", "no scan", *nothing, f"has landmarks ({file.name}), but no scan"])
    return found


def _page(
    summary: dict[str, Any],
    columns: Sequence[str],
    listed: Sequence[Sequence[str]],
    pictures: Sequence[bytes | None],
) -> str:
    above = summary["above_the_line"]
    points = counted(summary["points"], "point")
    lead = f"<strong>{counted(above, 'suspicion')}</strong> in {points}"
    facts = f"{counted(summary['cases'], 'case')} · {counted(summary['landmarks'], 'landmark')}"
    shown = [(str(rank), *line) for rank, line in enumerate(listed, start=1)]
    upper = [row for row in shown if float(row[4]) >= LINE]
    lower = [row for row in shown if float(row[4]) < LINE]
    scale = (
        "<p>Suspicion s: a good cohort of this size shows about 10<sup>-s</sup> such rows. Rows "
        f"from {LINE:g} on are above the line; 10 is certain.</p>\n"
    )
    figures = "".join(
        f'<figure class="scan"><figcaption>{escape(row[0])}. {escape(row[1])}: '
        f"{escape(row[-1])} (suspicion {escape(row[4])})</figcaption>\n"
        f'<img src="{data_uri(png, "image/png")}" alt="{escape(row[3])}"></figure>\n'
        for row, png in zip(shown, pictures, strict=False)
        if png is not None
    )
    met = [[kind, text] for kind, text in KINDS.items() if kind in summary["kinds"]]
    # The page leaves out the expected positions: pictures show them, and the table has them.
    head = [*columns[:5], columns[5].replace("off_", "off, "), columns[-1]]

    def rows_of(some: Sequence[Sequence[str]]) -> str:
        return table(head, [[*row[:6], row[-1]] for row in some], (4, 5))

    sections = [
        ("What to look at first", scale + (rows_of(upper) if upper else "<p>None.</p>")),
        ("Pictures", figures),
        ("Below the line", rows_of(lower) if lower else ""),
        ("What the kinds mean", table(["kind", "meaning"], met) if met else ""),
    ]
    return page("Annotations checked", lead, facts, sections)
