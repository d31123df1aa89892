"""How fast jaxmark is, in one command.

python experiments/benchmarks/run.py [--only=step,pipeline,scaling,startup,roofline]
    [--volumes=48x40x24,96x80x48] [--repeats=10] [--output=benchmarks.json] [--quick]

Prints tables and writes every single time as JSON. Runs on a CPU or one GPU; PyTorch is compared
with where it is installed (`pip install '.[bench]'`). Nothing else should compute meanwhile.
"""

import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from common import Options, Part, Spec, Worker, WorkerError, table
from tqdm import tqdm

# Modules, imported when their turn comes: workers import this file, and PyTorch's needs no JAX.
PARTS = ("step", "pipeline", "scaling", "startup", "roofline")

_ONLY = flags.DEFINE_list("only", list(PARTS), "parts to run")
_VOLUMES = flags.DEFINE_list("volumes", ["48x40x24", "96x80x48"], "voxels, as 192x160x96")
_REPEATS = flags.DEFINE_integer("repeats", 10, "of each measurement, at most")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "after which no repeat of one table row begins")
_OUTPUT = flags.DEFINE_string("output", "benchmarks.json", "JSON file to write")
_QUICK = flags.DEFINE_bool("quick", False, "a tiny network: shows that it works, not how fast")


def options(platform: str) -> Options:
    """Of the flags; ValueError that names the flag for a value that can't be."""
    if unknown := set(_ONLY.value) - set(PARTS):
        raise ValueError(f"--only: {sorted(unknown)[0]!r} is not one of {', '.join(PARTS)}")
    if _REPEATS.value < 1 or _SECONDS.value < 0:
        raise ValueError("--repeats and --seconds: must be positive")
    if not Path(_OUTPUT.value).absolute().parent.is_dir():
        raise ValueError(f"--output: there is no folder for {_OUTPUT.value}")
    spec = Spec((0, 0, 0), platform=platform)
    if _QUICK.value:
        spec = dataclasses.replace(spec, widths=(4, 8), head=8, landmarks=3, margin=4)
        return Options(((16, 16, 8),), 2, 1.0, batches=(2,), landmarks=(5,), spec=spec)
    block = 2 ** (len(spec.widths) - 1)
    volumes = tuple(volume(text, block) for text in _VOLUMES.value)
    if not volumes:
        raise ValueError("--volumes: names none")
    return Options(volumes, _REPEATS.value, _SECONDS.value, spec=spec)


def volume(text: str, block: int) -> tuple[int, int, int]:
    """ "96x80x48" -> (96, 80, 48); ValueError where the network can't take it."""
    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(sides) != 3 or not all(side and side % block == 0 for side in sides):
        raise ValueError(
            f"--volumes: {text!r} is not three multiples of {block} with x between, as in 96x80x48"
        )
    return sides[0], sides[1], sides[2]


def show(part: Part) -> None:
    """A part on the terminal."""
    print(f"\n== {part.title}\n{part.method}\n\n{table(part.rows)}")
    for note in part.notes:
        print(f"- {note}")
    sys.stdout.flush()


def write(path: Path, about: dict[str, Any], done: dict[str, Part]) -> None:
    """All figures; after each part, so that an interrupted run keeps what it has."""
    parts = {name: dataclasses.asdict(part) for name, part in done.items()}
    tree = {"schema_version": 1, **about, "parts": parts}
    path.write_text(json.dumps(tree, indent=1) + "\n")


def main(argv: Sequence[str]) -> None:
    """Exit code 1, with one line, for a flag that can't be or where something fails."""
    begin = time.monotonic()
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        options("cpu")  # before anything is started
        with Worker("roofline:About") as worker:
            about = {"command": sys.argv, "quick": _QUICK.value, **worker.call("describe")}
        platform = "cpu" if about["platform"] == "cpu" else "gpu"
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        print(f"{about['device']}, {about['machine']}, {about['cores']} cores; {versions}")
        print(f"{about['date']}; {about['environment'] or 'no tuning in the environment'}")
        if about["load"] > 0.3:
            print(f"warning: others compute here (load {about['load']}); ratios may be wrong")
        done: dict[str, Part] = {}
        for name in tqdm(_ONLY.value, desc="parts", unit="part"):
            done[name] = importlib.import_module(name).measure(options(platform))
            show(done[name])
            write(Path(_OUTPUT.value), about, done)
    except (ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"\nwritten: {_OUTPUT.value}; {(time.monotonic() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    app.run(main)
