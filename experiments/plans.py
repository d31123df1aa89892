"""Is a planned experiment as good as one made by hand? Both are trained for the same time.

    python -m experiments.plans --data=FOLDER --workdir=OUT --sets=mouse,phantom,turned,cta

prints, and writes as `plans.csv`, validation errors and minutes of training of both; `SET.csv` has
their settings side by side. Sets:

- `phantom`, `turned`, `cta`: synthetic people as NIfTI files: lying alike, turned by up to 30
  degrees in their headers, as CTA; by hand `cow.py:small`, registered where they are turned
- `mouse`: FOLDER/mouse_ct; by hand `mouse_ct_cascade.py`
- `cephalogram`: FOLDER/cephalogram; by hand `cephalogram.py:small`
- `cardiac`: FOLDER/cardiac_sax; by hand `cardiac_sax.py:small/heatmap`

`--minutes=8` trains both for so long: by hand with as many steps as fit. Without it the experiment
made by hand is trained as it is, and the plan gets the time that this took. What is trained is not
trained again. Also a single experiment made by hand:

    python -m jaxmark.main --config=experiments/plans.py:cta --config.data.root=FOLDER
"""

import csv
import dataclasses
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments import cardiac_sax, cephalogram, cow, mouse_ct_cascade
from experiments.commands import errors_on_one_line
from jaxmark.config import Experiment
from jaxmark.core.geometry import apply_affine, compose_affine, rotation_from_quaternion
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import read_landmarks, write_mrk_json
from jaxmark.data.scans import find_scans, read_scan, write_scan
from jaxmark.planning.network import STEPS_SHARE
from jaxmark.planning.steps import step_costs
from jaxmark.results.evaluate import read_summary
from jaxmark.system.devices import data_mesh
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, write_json, write_text_atomic

# Largest turn of a head.
_TURNED_DEGREES = 30.0
SCHEMA_VERSION = 1


def phantom() -> Experiment:
    """Aligned MRA; the test cases, which plans know nothing of, are left out."""
    experiment = cow.small()
    experiment.phantom = dataclasses.replace(experiment.phantom, test=0)
    return experiment


def turned() -> Experiment:
    """The same, registered."""
    experiment = phantom()
    experiment.data.register = "rigid"
    experiment.data.search_degrees = 45.0
    return experiment


def cta() -> Experiment:
    """The same people as CTA."""
    return cow.on_cta(phantom())


@dataclasses.dataclass(frozen=True)
class Set:
    """A cohort, and the experiment that was made for it by hand."""

    by_hand: Callable[[], Experiment]
    # Below --data; "": synthetic.
    folder: str = ""
    # What a user has to say beside the folder.
    flags: tuple[str, ...] = ()


SETS = {
    "phantom": Set(phantom),
    "turned": Set(turned),
    "cta": Set(cta),
    "mouse": Set(mouse_ct_cascade.get_config, "mouse_ct"),
    "cephalogram": Set(
        lambda: cephalogram.get_config("small"), "cephalogram", ("--config.data.pixel_size_mm=0.4",)
    ),
    "cardiac": Set(
        lambda: cardiac_sax.get_config("small/heatmap"),
        "cardiac_sax",
        ("--config.data.landmarks=('RVI anterior', 'RVI inferior')",),
    ),
}


def get_config(preset: str = "phantom") -> Experiment:
    """The experiment made by hand for a set; ValueError for one that does not exist."""
    if preset not in SETS:
        raise ValueError(f"there is no set {preset!r}, but {', '.join(SETS)}")
    experiment = SETS[preset].by_hand()
    experiment.name = f"by_hand_{preset}"
    return experiment


def cohort(name: str, data: Path, workdir: Path) -> Path:
    """The folder of a set; a synthetic one is written first."""
    chosen = SETS[name]
    if chosen.folder:
        if not (data / chosen.folder).is_dir():
            raise InputError("--data", f"there is no folder {data / chosen.folder}")
        return data / chosen.folder
    folder = workdir / "cohorts" / name
    if not (folder / "splits.json").exists():
        plain = folder if name != "turned" else workdir / "cohorts" / "phantom"
        chosen.by_hand().phantom.write(plain, 0)
        if name == "turned":
            turn(plain, folder)
    return folder


def turn(source: Path, folder: Path) -> None:
    """A cohort whose heads are turned, each another way: voxels stay, headers and points move."""
    rng = np.random.default_rng(0)
    for case, path in find_scans(source / "images").items():
        scan = read_scan(path)
        angle = np.radians(rng.uniform(0, _TURNED_DEGREES))
        axis = rng.standard_normal(3)
        half = np.sin(angle / 2) * axis / np.linalg.norm(axis)
        move = compose_affine(
            rotation_from_quaternion(np.array([np.cos(angle / 2), *half])), rng.uniform(-20, 20, 3)
        )
        write_scan(folder / "images" / path.name, scan.voxels, move @ scan.ijk_to_lps)
        points = read_landmarks(next((source / "landmarks").glob(f"{case}.*")), "")
        moved = {n: None if p is None else apply_affine(move, p) for n, p in points.items()}
        write_mrk_json(folder / "landmarks" / f"{case}.mrk.json", moved)
    write_json(folder / "splits.json", json.loads((source / "splits.json").read_text("utf-8")))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of a run that was trained."""

    error: float  # mean radial error of the validation cases, mm or pixels
    floor: float  # of the mean position
    minutes: float  # of `--mode=train`: steps, validations, compilation
    preparing: float  # minutes before that: a plan, and preparation


def outcome(workdir: Path, arguments: Sequence[str]) -> Outcome:
    """Trains and evaluates, or finds it done."""
    path = workdir / "outcome.json"
    if not path.exists():
        whole = [*arguments, f"--workdir={workdir}", "--config.predict.split=val"]
        preparing, minutes = (_minutes_of(mode, whole) for mode in ("prepare", "train"))
        _minutes_of("run", whole)
        summary = read_summary(workdir / "evaluation")
        floor = min(f["mre_mm"] for f in summary["floors"].values() if f["mre_mm"] is not None)
        found = Outcome(summary["mre_mm"], floor, minutes, preparing)
        write_json(path, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(found)})
    tree = read_json(path, SCHEMA_VERSION)
    return Outcome(**{field.name: tree[field.name] for field in dataclasses.fields(Outcome)})


def _minutes_of(mode: str, arguments: Sequence[str]) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "jaxmark.main", f"--mode={mode}", *arguments]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise InputError(" ".join(command[1:]), f"ended with exit code {code}")
    return (time.perf_counter() - begin) / 60


def steps_for(experiment: Experiment, names: tuple[str, ...], minutes: float) -> list[str]:
    """Flags that train an experiment made by hand for so long, its phases in proportion."""
    costs = step_costs(experiment, names, data_mesh())
    fields = ["steps", "refine_steps"][: len(costs)]
    steps = [getattr(experiment.method, field) for field in fields]
    taken = sum(n * cost.seconds for n, cost in zip(steps, costs, strict=True))
    times = 60 * minutes * STEPS_SHARE / taken
    flags_ = [f"--config.method.{f}={round(n * times)}" for f, n in zip(fields, steps, strict=True)]
    every = max(round(experiment.train.validate_every * times), 1)
    return [*flags_, f"--config.train.validate_every={every}"]


def compared(
    name: str, data: Path, workdir: Path, minutes: float | None
) -> tuple[Outcome, Outcome]:
    """A set's experiment made by hand, and the planned one."""
    chosen, root = SETS[name], cohort(name, data, workdir)
    given = [f"--config.data.root={root}", *chosen.flags]
    by_hand = [f"--config=experiments/plans.py:{name}", *given]
    if minutes is not None:
        experiment = get_config(name)
        experiment.data.root = str(root)
        by_hand += steps_for(experiment, read_cohort(experiment.data).names, minutes)
    first = outcome(workdir / name / "by_hand", by_hand)
    allowed = minutes if minutes is not None else first.minutes
    planned = ["--config=experiments/auto.py", *given, f"--minutes={allowed:.2f}"]
    return first, outcome(workdir / name / "planned", planned)


def settings(workdir: Path) -> list[list[str]]:
    """What was decided for a set, a line each: the field, by hand, planned."""
    by_hand = read_json(workdir / "by_hand" / "config.json")
    plan = read_json(workdir / "planned" / "plan.json")
    lines = [["field", "by hand", "planned"]]
    for decision in plan["decisions"]:
        holder: Any = by_hand
        for name in decision["field"].split("."):
            holder = holder.get(name, "") if isinstance(holder, dict) else ""
        if decision["field"] == "method":
            holder = by_hand["method"]["class"]
        lines.append([decision["field"], str(holder), str(decision["value"])])
    return lines


def write_csv(lines: Sequence[Sequence[str]], path: Path) -> None:
    """Atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text_atomic(path, text.getvalue())


def main(argv: Sequence[str]) -> None:
    """See above."""
    values: Any = flags.FLAGS
    workdir, rows = Path(values.workdir), []
    with errors_on_one_line():
        for name in values.sets:
            if name not in SETS:
                raise InputError("--sets", f"{name!r} is not one of {', '.join(SETS)}")
        for name in values.sets:
            first, planned = compared(name, Path(values.data or ""), workdir, values.minutes)
            rows.append([name, *_figures(first), *_figures(planned)])
            write_csv([_HEAD, *rows], workdir / "plans.csv")
            write_csv(settings(workdir / name), workdir / f"{name}.csv")
    for row in [_HEAD, *rows]:
        print(" | ".join(row))


_HEAD = ["set", "by hand", "floor", "minutes", "prepared in", "planned", "floor", "minutes"]
_HEAD.append("planned and prepared in")


def _figures(found: Outcome) -> list[str]:
    return [f"{v:.3g}" for v in (found.error, found.floor, found.minutes, found.preparing)]


if __name__ == "__main__":
    flags.DEFINE_list("sets", ["phantom"], "Which sets, in that order.")
    flags.DEFINE_string("data", None, "The folder of the sets that are not synthetic.")
    flags.DEFINE_string("workdir", "runs/plans", "Folder of all runs.")
    flags.DEFINE_float("minutes", None, "Train both for so long.")
    app.run(main)
