"""Tables 1 and 2 of Kanakatte et al. on synthetic cine slices, and a blind test.

python -m experiments.cardiac_table --preset=small

trains, evaluates and compares all rows of `experiments/cardiac_gan.py` for all sets, one after the
other. Then each row is tested on new people from another hospital's scanner
(`CinePhantom.scanner`). Finished rows are not run again, and a stopped row continues.
`FOLDER/table.csv` has all figures beside the paper's; `FOLDER/SET/index.html` and
`FOLDER/SET/blind/index.html` have details of each set.

Frames of one person are alike, so intervals and p of the table are over people. Those of the pages
count slices as independent, and are too narrow.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from experiments import cardiac_gan
from experiments.commands import check_lists, check_no_arguments, errors_on_one_line
from experiments.rows import Row, train_and_compare
from jaxmark.config import Experiment
from jaxmark.core import metrics
from jaxmark.data.cohort import RawCase, read_cohort
from jaxmark.data.phantoms.cine.cohort import person_of
from jaxmark.results import evaluate
from jaxmark.results.compare import Row as Compared
from jaxmark.results.compare import as_text, compare, write_comparison
from jaxmark.results.measures.points import Points
from jaxmark.system.files import write_text_atomic
from jaxmark.workflow import load_model

# People of the other hospital; another seed, so that nobody is in both.
BLIND_PEOPLE, BLIND_SEED = 30, 1
NOTE = (
    "Synthetic slices, the same splits for all rows; beside them the paper's figures, of other "
    "data. Errors are pixels. Intervals take slices for independent: see table.csv for people."
)
HEAD = (
    *("set", "test", "row", "slices", "MRE px", "SD px", "SDR 2 px", "SDR 3 px", "SDR 5 px"),
    *("minus GAN px", "95 % low", "95 % high", "p"),
    *("paper MRE px", "paper SD px", "paper SDR 2", "paper SDR 3", "paper SDR 5"),
)


def rows_of(
    size: str, name: str, rows: Sequence[str], seeds: Sequence[str], folder: Path
) -> list[Row]:
    """The rows of a set, trained with each seed in `folder/ROW-SEED`."""
    return [
        Row(
            row,
            f"experiments/cardiac_gan.py:{size}/{name}/{row}",
            {seed: folder / f"{row}-{seed}" for seed in seeds},
        )
        for row in rows
    ]


def blind_cohort(experiment: Experiment, folder: Path) -> dict[str, RawCase]:
    """The other scanner's slices by case; written into the folder if they are missing."""
    people = min(BLIND_PEOPLE, experiment.phantom.test)
    phantom = dataclasses.replace(
        experiment.phantom, scanner="B", seed=BLIND_SEED, train=1, val=0, test=people
    )
    phantom.write(folder, experiment.data.workers)
    # Starting processes takes longer than reading these slices.
    data = dataclasses.replace(
        experiment.data, root=str(folder), landmarks=phantom.scheme.landmarks, workers=1
    )
    cohort = read_cohort(data)
    return {case: cohort.cases[case] for case in cohort.splits["test"]}


def blind_test(home: Path, experiment: Experiment, cohort: Path) -> Path:
    """Evaluate the model of a work dir on the other scanner's slices, unless that was done before.

    Returns the folder of `evaluation/`.
    """
    folder = home / "blind"
    if (folder / "evaluation" / evaluate.SUMMARY).exists():
        return folder
    cases = blind_cohort(experiment, cohort)
    model = load_model(home)
    found = {name: model.predict(case.scan) for name, case in cases.items()}
    known = [scan.plane.pixel_mm for scan in found.values() if scan.plane is not None]
    shape = (len(cases), len(model.landmarks))
    points = Points(
        cases=tuple(cases),
        landmarks=model.landmarks,
        truth_mm=np.stack([case.landmarks_mm for case in cases.values()]),
        predicted_mm=np.stack([scan.positions_mm for scan in found.values()]),
        present=np.stack([case.present for case in cases.values()]),
        absent=np.stack([case.absent for case in cases.values()]),
        score=np.stack([scan.score for scan in found.values()]),
        presence=np.full(shape, np.nan),
        radius_mm=np.stack([scan.radius_mm for scan in found.values()]),
        unit=experiment.data.unit,
        pixel_mm=np.array(known),
    )
    settings = experiment.evaluate
    evaluate.evaluate(
        points,
        thresholds_mm=settings.sdr_thresholds_px,
        floors={},
        folder=folder / "evaluation",
        promised=experiment.predict.coverage,
        other_thresholds=settings.sdr_thresholds_mm,
    )
    return folder


def over_people(row: Compared, base: Compared) -> dict[str, Any] | None:
    """`metrics.paired_comparison` of two rows' errors, each person's frames averaged.

    None where a row is compared with itself.
    """
    if row is base:
        return None
    people = np.array([person_of(case) for case in row.cases])

    def averaged(error_mm: np.ndarray) -> np.ndarray:
        """(N, K) of slices -> (P, K) of people."""
        return np.stack([error_mm[people == who].mean(0) for who in dict.fromkeys(people)])

    return metrics.paired_comparison(averaged(row.error_mm), averaged(base.error_mm), 0)


def lines_of(name: str, test: str, rows: Sequence[Compared], *, published: bool) -> list[list[Any]]:
    """Lines of the table, columns as in `HEAD`, for the rows of a set on one test.

    Args:
      name: the set's name.
      test: "own", or "blind" for the other scanner's people.
      published: add the paper's figures to the line of the paper's method.
    """
    base = next((row for row in rows if row.label == cardiac_gan.REFERENCE), None)
    lines = []
    for row in rows:
        summary = row.summary
        sdr = [100 * share for share in summary["sdr"].values()]
        tested = None if base is None else over_people(row, base)
        against: list[Any] = [""] * 4
        if tested is not None:
            against = [tested["difference"], *(tested["interval"] or ["", ""]), tested["p_value"]]
        paper: list[Any] = [""] * 5
        if published and row.label == cardiac_gan.REFERENCE:
            of = cardiac_gan.PAPER[name]
            paper = [of["mre_mm"], of["sd_mm"], *of["sdr"]]
        figures = [summary["mre_mm"], summary["sd_points_mm"], *sdr, *against]
        lines.append(
            [name, test, row.label, int(summary["n_scans"]), *map(_short, figures), *paper]
        )
    return lines


def _short(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def run_set(
    size: str, name: str, rows: Sequence[str], seeds: Sequence[str], folder: Path
) -> list[list[Any]]:
    """Train, compare and blindly test the rows of a set; return its lines of the table.

    Raises InputError where a row's training ends early.
    """
    trained = rows_of(size, name, rows, seeds, folder)
    found = train_and_compare(trained, cardiac_gan.REFERENCE)
    published = {cardiac_gan.REFERENCE: cardiac_gan.PAPER[name]}
    title = f"{name}, {size}"
    page = write_comparison(found, folder, title=title, note=NOTE, published=published)
    print(as_text(found, published))
    homes: Mapping[str, Sequence[Path]] = {
        row.name: [
            blind_test(home, cardiac_gan.get_config(f"{size}/{name}/{row.name}"), folder / "B")
            for home in row.homes.values()
        ]
        for row in trained
    }
    blind = compare(homes, cardiac_gan.REFERENCE)
    write_comparison(blind, folder / "blind", title=f"{title}, blind test", note=NOTE)
    print(f"{as_text(blind, {})}\ntable: {page}")
    return [
        *lines_of(name, "own", found, published=True),
        *lines_of(name, "blind", blind, published=False),
    ]


def main(argv: Sequence[str]) -> None:
    """All sets that the flags ask for, and the table of them."""
    # Orbax logs each file that it reads.
    logging.set_verbosity(logging.FATAL)
    values = flags.FLAGS
    folder = Path(values.workdir or f"runs/cardiac_gan_{values.preset}")
    lines: list[list[Any]] = []
    with errors_on_one_line():
        check_lists({"sets": cardiac_gan.SETS, "rows": cardiac_gan.ROWS})
        check_no_arguments(argv)
        for name in values.sets:
            lines += run_set(values.preset, name, values.rows, values.seeds, folder / name)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([HEAD, *lines])
    write_text_atomic(folder / "table.csv", text.getvalue())
    print(f"{text.getvalue()}table: {folder / 'table.csv'}")


if __name__ == "__main__":
    flags.DEFINE_enum("preset", "small", list(cardiac_gan.SIZES), "Size and length of training.")
    flags.DEFINE_list("sets", list(cardiac_gan.SETS), "Which sets.")
    flags.DEFINE_list("rows", list(cardiac_gan.ROWS), "Which rows.")
    flags.DEFINE_list("seeds", ["0"], "Each row is trained with each of these, and averaged.")
    flags.DEFINE_string("workdir", None, "Folder of all runs; default: runs/cardiac_gan_*.")
    app.run(main)
