"""Measurements on a GPU: in parts of at most ten minutes each, and one table of all results.

python -m experiments.gpu --part=positions --workdir=TRAINED
python -m experiments.gpu --part=speed
python -m experiments.gpu --part=train   (repeat it until it prints that all rows are done)
python -m experiments.gpu                (the table of all results so far)

It installs nothing. `positions` needs a model that was trained and evaluated elsewhere, in float32
on a CPU, and measures how far its test cases' positions move on this device. `train` continues
where the last call stopped; other parts are measured again, and keep their results so far if the
time ends. `train` runs rows of `cow_table1.py:paper` on full-size phantoms, the baseline and the
paper's best row first. `results.tar.gz` has all figures, reports and logs, but no checkpoints.
"""

import csv
import json
import math
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments import rows
from experiments.benchmarks.timing import table

BENCHMARK = ("-m", "experiments.benchmarks.run")
NHWC = "--xla_gpu_force_conv_nhwc=true"
# Part -> flags of the benchmarks, and variables of the environment.
PARTS: dict[str, tuple[str, dict[str, str]]] = {
    "speed": ("--parts=step,roofline --rivals=torch --batches=1", {}),
    "speed_8": ("--parts=step --rivals=torch --batches=8", {}),
    "adversarial": ("--parts=adversarial", {}),
    "naive": ("--parts=step --rivals=naive --batches=1", {}),
    "channels_last": ("--parts=step,adversarial --rivals=torch --minutes=4", {"XLA_FLAGS": NHWC}),
    "batches": ("--parts=scaling --batches=1,2,4,8 --minutes=8", {}),
    "profile": ("--parts=profile --keep={folder}/profile", {}),
    "methods": ("--parts=methods,startup --minutes=4", {}),
    "convolutions": ("--parts=convolutions --minutes=8", {}),
}
ROWS = ("Baseline", "D-MRA-CTA-dagger", "D-MRA", "D-MRA-CTA", "Payer", "Noothout")
ARCHIVE = "results.tar.gz"
COMPILED = "compiled"


def _flags() -> None:
    parts = ["positions", *PARTS, "train"]
    flags.DEFINE_enum("part", None, parts, "What to measure; none: print the table.")
    flags.DEFINE_string("workdir", None, "Work dir of the model for --part=positions.")
    flags.DEFINE_string("out", "runs/gpu", "Folder of all results.")
    flags.DEFINE_float("minutes", 9.5, "A call lasts no longer.", lower_bound=0.1)
    flags.DEFINE_string("volumes", "192x160x96", "Size of the benchmarks' volumes.")
    flags.DEFINE_string("preset", "paper", "Preset of the rows that are trained.")
    flags.DEFINE_list("rows", list(ROWS), "Rows of Table 1 to train, in this order.")


def main(argv: Sequence[str]) -> None:
    """Run one part, then print the table; exit code 1 if the part failed, 3 if its time ended."""
    if len(argv) > 1:
        print(f"error: command line: unexpected argument {argv[1]!r}", file=sys.stderr)
        sys.exit(1)
    values = flags.FLAGS
    folder = Path(values.out)
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * values.minutes - rows.GRACE_S
    code = 0
    if values.part == "positions":
        code = positions(folder, Path(values.workdir or "."), end)
    elif values.part == "train":
        code = train(folder, values.preset, values.rows, end)
    elif values.part:
        arguments, environment = PARTS[values.part]
        out = folder / f"{values.part}.json"
        arguments = arguments.format(folder=folder)
        command = [*BENCHMARK, *arguments.split(), f"--volumes={values.volumes}", f"--out={out}"]
        log = folder / f"{values.part}.log"
        # Parts compile the same programs, so the cache is shared.
        kept = {"JAX_COMPILATION_CACHE_DIR": str((folder / COMPILED).absolute())}
        code = rows.logged(command, log, environment=kept | environment, end=end)
    measured = list(benchmark_rows(folder))
    print(f"\n== measured\n{table(measured)}" if measured else "nothing is measured yet")
    path = folder / "positions.json"
    if path.exists():
        print(f"\n== positions\n{table([json.loads(path.read_text())])}")
    if trained := list(trained_rows(folder)):
        print(f"\n== trained\n{table(trained)}")
    pack(folder)
    print(f"all of it: {folder / ARCHIVE}")
    if code:
        sys.exit(code)


def positions(folder: Path, home: Path, end: float) -> int:
    """Distances in mm of a model's test positions from those where it was evaluated before."""
    there = folder / "positions"
    made = shutil.ignore_patterns("predictions", "evaluation", "report")
    shutil.copytree(home, there, ignore=made, dirs_exist_ok=True)
    for mode in ("predict", "evaluate"):
        command = ["-m", "jaxmark.main", f"--workdir={there}", f"--mode={mode}"]
        command.append(f"--config=jaxmark/trained.py:{there}")
        if code := rows.logged(command, folder / "positions.log", end=end):
            return code
    before, now = (read_landmarks(one / "predictions", "subvoxel") for one in (home, there))
    moved = sorted(math.dist(before[key], now[key]) for key in before)
    found = {
        "points": len(moved),
        "median_mm": moved[len(moved) // 2],
        "95 %": moved[int(0.95 * len(moved))],
        "largest": moved[-1],
        "moved over 0.1 mm": sum(distance > 0.1 for distance in moved),
    }
    for name, one in (("MRE_before", home), ("MRE_here", there)):
        found[name] = json.loads((one / "evaluation" / "summary.json").read_text())["mre_mm"]
    (folder / "positions.json").write_text(json.dumps(found) + "\n")
    return 0


def read_landmarks(folder: Path, decoder: str) -> dict[tuple[str, str], list[float]]:
    """Positions in mm by case and landmark."""
    with (folder / f"landmarks_{decoder}.csv").open(encoding="utf-8", newline="") as file:
        return {
            (row["case"], row["landmark"]): [float(row[f"{axis}_lps_mm"]) for axis in "xyz"]
            for row in csv.DictReader(file)
        }


def train(folder: Path, preset: str, names: Sequence[str], end: float) -> int:
    """Train rows one after the other, each from where the last call stopped; the exit code."""
    wanted = [table_row(folder, preset, name) for name in names]
    stop = rows.train(wanted, logs=folder, end=end)
    print("run this again to continue" if stop else "all rows are done")
    return stop.code if stop else 0


def table_row(folder: Path, preset: str, name: str) -> rows.Row:
    """A row of Table 1 with seed 0."""
    config = f"experiments/cow_table1.py:{preset}/{name}"
    return rows.Row(name, config, {"0": folder / "rows" / f"{name}-0"})


def benchmark_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Times of all parts, and their ratios to PyTorch."""
    for name in PARTS:
        path = folder / f"{name}.json"
        parts = json.loads(path.read_text())["parts"] if path.exists() else {}
        for part, content in parts.items():
            for row in content["rows"]:
                if "jaxmark_ms" not in row and "floor_ms" not in row and "step_ms" not in row:
                    continue
                yield {
                    "of": name,
                    "what": part if part != "methods" else row["method"],
                    "volume": row["volume"],
                    "batch": row["batch"],
                    "K": row["K"],
                    "work": row.get("work", "step"),
                    "ms": row.get("jaxmark_ms") or row.get("step_ms") or row.get("measured_ms"),
                    "torch/jaxmark": row.get("torch/jaxmark"),
                    "naive/jaxmark": row.get("naive/jaxmark"),
                    "floor/measured": row.get("floor/measured"),
                    "MB": row.get("jaxmark_MB") or row.get("step_MB"),
                }


def trained_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Steps, minutes and errors of rows in training or trained."""
    for home in sorted((folder / "rows").glob("*")):
        log, config = home / "logs" / "speed.jsonl", home / "config.json"
        if not (log.exists() and config.exists()):
            continue
        batch = json.loads(config.read_text())["train"]["batch"]
        records = [json.loads(line) for line in log.read_text().splitlines()]
        seconds, before = 0.0, 0
        for record in records:
            seconds += (record["step"] - before) * batch / record["volumes_per_s"]
            before = record["step"]
        path = home / "evaluation" / "summary.json"
        summary = json.loads(path.read_text()) if path.exists() else {}
        yield {
            "row": home.name,
            "steps": before,
            "minutes_of_steps": seconds / 60,
            "volumes/s": records[-1]["volumes_per_s"] if records else None,
            "MRE_mm": summary.get("mre_mm"),
            "SD_of_scans_mm": summary.get("sd_scans_mm"),
            "confusion_rate": summary.get("confusion_rate"),
        }


def pack(folder: Path) -> None:
    """Pack all figures, reports and logs into one archive."""
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if (
                path.is_file()
                and path.name != ARCHIVE
                and not {"checkpoints", COMPILED} & {*inside.parts}
            ):
                archive.add(path, inside)


if __name__ == "__main__":
    _flags()
    app.run(main)
