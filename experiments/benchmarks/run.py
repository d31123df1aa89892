"""How fast jaxmark is, in one command.

python -m experiments.benchmarks.run [--parts=step,roofline] [--volumes=96x80x48] [--out=FILE.json]

Prints tables and writes every single time as JSON. Runs on a CPU or one GPU; PyTorch is compared
with where it is installed (`pip install '.[bench]'`). Nothing else should compute meanwhile.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from tqdm import tqdm

from experiments.benchmarks.common import RIVALS, Options, Spec
from experiments.benchmarks.timing import Worker, WorkerError, table
from jaxmark.system import huge_pages

# Title, module with METHOD and rows(), and what these are called for.
PARTS: dict[str, tuple[str, str, Callable[[Options], Sequence[Spec]]]] = {
    "step": ("step and inference by volume", "step", lambda options: options.volumes),
    "pipeline": ("input pipeline", "pipeline", lambda options: options.volumes),
    "scaling": ("the same by batch and by landmarks K", "step", Options.scaled),
    "adversarial": (
        "step of the adversarial phase",
        "adversarial",
        lambda options: options.volumes[-1:],
    ),
    "cardiac_gan": ("the cardiac GAN on pictures", "cardiac_gan", Options.pictures),
    "engines": ("inference by engine", "engines", lambda options: options.volumes),
    "startup": ("time to the first step", "startup", lambda options: options.volumes),
    "convolutions": (
        "forms of a convolution",
        "convolutions",
        lambda options: options.volumes[-2:][:1],
    ),
    "methods": (
        "training step and inference of all methods",
        "methods",
        lambda options: options.volumes[-1:],
    ),
    "compiled": ("what is compiled for a GPU", "compiled", Options.for_gpu),
    "profile": ("where the time goes", "profile", lambda options: options.volumes[-1:]),
    "roofline": ("what the device could do", "roofline", lambda options: options.volumes),
}

_PARTS = flags.DEFINE_list("parts", list(PARTS), "What to measure.")
_VOLUMES = flags.DEFINE_list(
    "volumes", ["48x40x24", "96x80x48", "192x160x96"], "Voxels, smallest first."
)
_BATCHES = flags.DEFINE_list(
    "batches",
    ["1", "2", "4"],
    "The first for all; all of them in scaling.",
)
_WIDTHS = flags.DEFINE_list("widths", list(map(str, Spec.widths)), "Channels of the levels.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Of each measurement, at most.", lower_bound=1)
_SECONDS = flags.DEFINE_float(
    "seconds", 10.0, "Nothing is repeated once its repeats took this long.", lower_bound=0
)
_MINUTES = flags.DEFINE_float("minutes", 9.0, "No row of a part begins later.", lower_bound=0)
_RIVALS = flags.DEFINE_list("rivals", list(RIVALS), "That jaxmark is compared with.")
_KEEP = flags.DEFINE_string("keep", None, "Folder for traces and programs of part profile.")
_OUT = flags.DEFINE_string("out", "benchmarks.json", "JSON file to write.")


def options(platform: str) -> Options:
    """Of the flags; ValueError that names the flag for a value that can't be."""
    for part in _PARTS.value:
        if part not in PARTS:
            raise ValueError(f"--parts: {part!r} is not one of {', '.join(PARTS)}")
    if not Path(_OUT.value).absolute().parent.is_dir():
        raise ValueError(f"--out: there is no folder for {_OUT.value}")
    for rival in _RIVALS.value:
        if rival not in RIVALS:
            raise ValueError(f"--rivals: {rival!r} is not one of {', '.join(RIVALS)}")
    if not _VOLUMES.value:
        raise ValueError("--volumes: names none")
    batches, widths = counts("batches", _BATCHES.value), counts("widths", _WIDTHS.value)
    specs = [
        Spec(volume(text, len(widths)), batch=batches[0], widths=widths, platform=platform)
        for text in _VOLUMES.value
    ]
    return Options(
        volumes=tuple(specs),
        batches=batches,
        repeats=_REPEATS.value,
        seconds=_SECONDS.value,
        rivals=tuple(_RIVALS.value),
        keep=Path(_KEEP.value) if _KEEP.value else None,
    )


def counts(flag: str, values: Sequence[str]) -> tuple[int, ...]:
    """["1", "2"] -> (1, 2); ValueError where one is not a positive whole number."""
    if not values or not all(value.isdecimal() and int(value) for value in values):
        raise ValueError(f"--{flag}: {','.join(values)!r} is not positive whole numbers, as in 1,2")
    return tuple(map(int, values))


def volume(text: str, levels: int) -> tuple[int, int, int]:
    """ "96x80x48" -> (96, 80, 48), "96x80", a picture, -> (96, 80, 1).

    ValueError where the network can't take it.
    """
    block = 2 ** (levels - 1)
    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(sides) not in (2, 3) or not all(side and side % block == 0 for side in sides):
        raise ValueError(
            f"--volumes: {text!r} is not two or three multiples of {block} with x between, as in "
            "96x80x48"
        )
    x, y, z = (*sides, 1)[:3]
    return x, y, z


def measure(name: str, chosen: Options, tree: dict[str, Any]) -> dict[str, Any]:
    """A part, added to the tree, which is written after each row in case of an interruption.

    A problem that fails, or for which no time is left, is a note.
    """
    title, module_name, problems = PARTS[name]
    part: dict[str, Any] = {"title": title, "method": "", "rows": [], "notes": []}
    tree["parts"][name] = part
    try:
        module = importlib.import_module(f"experiments.benchmarks.{module_name}")
    except ModuleNotFoundError as error:
        part["notes"].append(f"not measured: {error}")
        return part
    part["method"] = module.METHOD
    end = time.monotonic() + 60 * _MINUTES.value
    for spec in tqdm(problems(chosen), desc=name, unit="problem"):
        try:
            if time.monotonic() > end:
                raise WorkerError(f"left out after --minutes={_MINUTES.value:g}")
            for found in module.rows(spec, chosen):
                part["notes" if isinstance(found, str) else "rows"].append(found)
                save(tree)
        except WorkerError as error:
            part["notes"].append(f"{spec}: {error}")
    return part


def save(tree: dict[str, Any]) -> None:
    """Write all that is known so far."""
    Path(_OUT.value).write_text(json.dumps(tree, indent=1) + "\n")


def main(argv: Sequence[str]) -> None:
    """Exit code 1, with one line, for a flag that can't be or where JAX finds no device."""
    begin = time.monotonic()
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        options("cpu")  # before anything is started
        # As jaxmark starts itself on a CPU; PyTorch gains as much.
        os.environ.update(huge_pages.environment())
        with Worker("experiments.benchmarks.machine:Machine") as worker:
            about = worker.call("describe")
    except (ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{about['device']}, {about['machine']}, {about['cores']} cores; {versions}")
    print(f"{about['date']}; {about['environment'] or 'no tuning in the environment'}")
    if about["load"] > 0.3:
        print(f"warning: others compute here (load {about['load']}); ratios may be wrong")
    if "torch" not in about["versions"]:
        print("PyTorch is not installed: its columns are empty (pip install '.[bench]')")
    chosen = options("cpu" if about["platform"] == "cpu" else "gpu")
    tree: dict[str, Any] = {"schema_version": 1, "command": sys.argv[1:], **about, "parts": {}}
    for name in _PARTS.value:
        part = measure(name, chosen, tree)
        save(tree)
        print(f"\n== {part['title']}\n{part['method']}\n\n{table(part['rows'])}")
        for note in part["notes"]:
            print(f"- {note}")
        sys.stdout.flush()
    print(f"\nwritten: {_OUT.value}; {(time.monotonic() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    app.run(main)
