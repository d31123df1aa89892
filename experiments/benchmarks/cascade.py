"""A scan of 512^3 voxels from its file to landmark files by the cascade: time and memory.

python -m experiments.benchmarks.cascade --folder=DIR [--side=512] [--out=FILE.json]

Writes scans of noise and an untrained model with the paper's settings into the folder (5 landmarks,
factor 4, patches of 64 voxels; 1.5 GB), if they are not there. Prints the time of each part in this
process, then time and peak memory of the command line in processes of their own, then what an H100
would need at least. Several runs of a part give the median. CPU seconds are of all threads; where
others compute, they tell more than the clock.

`--h100` alone compiles both stages for one instead, in bfloat16, without one (pip install
'.[cuda13]'): memory, and bytes moved.
"""

import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from scipy import ndimage

from experiments import vessel_cascade
from experiments.benchmarks import compiled
from experiments.benchmarks.common import Row
from experiments.benchmarks.timing import table
from jaxmark.config import SCHEMA_VERSION, Experiment, to_json
from jaxmark.core.geometry import compose_affine
from jaxmark.data.arrays import map_npy, npy
from jaxmark.data.cases import Volume
from jaxmark.data.chunks import ChunkedImage, Chunks
from jaxmark.data.frame import Frame, load_frame, save_frame
from jaxmark.data.scans import write_scan
from jaxmark.inference.model import TrainedModel
from jaxmark.methods.cascade import FIRST, Cascade
from jaxmark.methods.method import Prediction, State, Task, Variables
from jaxmark.results.predictions import write_markups, write_predictions
from jaxmark.system import huge_pages
from jaxmark.system.devices import local_mesh
from jaxmark.system.files import write_json
from jaxmark.training.checkpoints import Writer
from jaxmark.workflow import load_model, task_of

T = TypeVar("T")

FORMATS = (".nii.gz", ".nii", ".mha")
# NVIDIA's data sheet of the H100 SXM: bfloat16 without sparsity, memory, PCIe 5 in one direction.
FLOP_PER_S, BYTES_PER_S, BUS_BYTES_PER_S = 989e12, 3.35e12, 64e9

_FOLDER = flags.DEFINE_string("folder", None, "Where scans and model are, or are to be.")
_SIDE = flags.DEFINE_integer("side", 512, "Voxels along each axis.", lower_bound=64)
_OUT = flags.DEFINE_string("out", "", "JSON file to write.")
_H100 = flags.DEFINE_bool("h100", False, "Only compile both stages for an H100.")
_COMMANDS = flags.DEFINE_bool("commands", True, "Run the command line on each file.")


def experiment(side: int) -> Experiment:
    """The paper's, for volumes of another size if so asked."""
    found = vessel_cascade.paper()
    found.data.crop = (side, side, side)
    return found


def write_scans(folder: Path, side: int) -> None:
    """Smooth shapes and noise as in a CT, int16, in all `FORMATS`."""
    rng = np.random.default_rng(0)
    shapes = ndimage.gaussian_filter(rng.normal(size=(side // 8,) * 3).astype(np.float32), 3)
    voxels = ndimage.zoom(4000 * shapes, 8, order=1)
    voxels += 15 * rng.standard_normal(voxels.shape, np.float32)
    place = compose_affine(np.eye(3) * 0.4, np.full(3, -0.2 * (side - 1)))
    for ending in FORMATS:
        write_scan(folder / f"scan{ending}", voxels.astype(np.int16), place)


def write_model(folder: Path, settings: Experiment) -> None:
    """A work dir of random weights."""
    method = settings.method.build(_task(settings))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(method.init, jax.random.key(0))

    def filled(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = 0.05 * rng.standard_normal(leaf.shape)
        return values.astype(leaf.dtype) if leaf.shape else np.ones((), leaf.dtype)

    state: State = jax.tree.map(filled, shapes)
    data, factor = settings.data, settings.method.factor
    middle = (np.array(data.crop) - 1) / 2 * data.spacing_mm
    frame = Frame(
        register="none",
        metric=data.metric,
        search_degrees=data.search_degrees,
        template=None,
        common_to_template=np.eye(4),
        # Between the scan's voxels: all is interpolated.
        grid_to_common=compose_affine(np.diag(data.spacing_mm), 0.15 - middle),
        shape=data.crop,
        intensity=data.intensity,
        intensity_range=data.intensity_window,
        chunks=Chunks(factor),
    )
    assert settings.phantom is not None
    save_frame(frame, settings.phantom.scheme.landmarks, folder / "preparation")
    write_json(folder / "config.json", {"schema_version": SCHEMA_VERSION, **to_json(settings)})
    writer = Writer(folder, keep=1)
    writer.save(state, {}, {}, None)
    writer.close()


def _task(settings: Experiment) -> Task:
    assert settings.phantom is not None
    return task_of(settings, settings.phantom.scheme, local_mesh())


@dataclasses.dataclass
class Timed:
    """Rows of a table: seconds of the clock and of all threads."""

    rows: list[Row]

    def __call__(self, part: str, run: Callable[[], T], note: str = "") -> T:
        """What it returned last, of three runs."""
        clock, threads = [], []
        for _ in range(3):
            begin, cpu = time.perf_counter(), time.process_time()
            result = run()
            clock.append(time.perf_counter() - begin)
            threads.append(time.process_time() - cpu)
        figures = {"ms": 1e3 * statistics.median(clock), "cpu_ms": 1e3 * statistics.median(threads)}
        self.rows.append({"part": part, **figures, "note": note})
        return result


def breakdown(folder: Path, model: TrainedModel) -> dict[str, list[Row]]:
    """The parts of a prediction, one after another; and patches, cut in several ways."""
    timed, frame = Timed([]), model.frame
    for ending in FORMATS:
        scan = timed(f"file, {ending}", partial(frame.read, folder / f"scan{ending}"))
    store = folder / "stored"
    store.mkdir(exist_ok=True)
    alignment = frame.align(scan)
    prepared = timed(
        "resampling and writing",
        partial(frame.store, scan, alignment, store),
        note="with the coarse image",
    )
    image, volume = prepared.image, prepared.volume("scan")
    assert isinstance(image, ChunkedImage)
    path = store / "image.npy"
    path.write_bytes(npy(image.whole()))
    _stages(timed, model, volume)
    assert isinstance(model.experiment.method, Cascade)
    patches = _patches(volume, image.shape, store, model.experiment.method.patch)
    (one,) = model.predictor(model.variables, [volume])
    case = model.landmarks_of(one, prepared)

    def write() -> None:
        write_markups(case, folder / "out", fcsv=True)
        write_predictions(folder / "out" / "scan.csv", [case])

    timed("landmark files", write)
    path.unlink()
    prepared.discard()
    return {"parts": timed.rows, "a patch": patches}


def _stages(timed: Timed, model: TrainedModel, volume: Volume) -> None:
    """Both stages' programs."""
    found: Prediction | None = None
    stages = model.experiment.method.build(_task(model.experiment)).stages
    for number, stage in enumerate(stages[:2], start=1):
        arrays = timed(f"stage {number}: reading", partial(stage.read, volume, found))
        arrays = jax.tree.map(lambda x: x[None], arrays)
        begin = time.perf_counter()
        program = jax.jit(stage.run).lower(model.variables, arrays).compile()
        seconds, memory = time.perf_counter() - begin, program.memory_analysis()
        assert memory is not None
        at_once = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        note = f"{at_once / 1e6:.0f} MB on the device; compiled in {seconds:.1f} s"

        run = partial(_run, program, model.variables, arrays)
        # The first call gets its memory from the system.
        run()
        result = timed(f"stage {number}: network", run, note)
        found = stage.finish(jax.tree.map(lambda x: x[0], result))


def _run(program: Any, variables: Variables, arrays: Any) -> Any:
    """On the host."""
    return jax.device_get(program(variables, arrays))


def _patches(volume: Volume, shape: tuple[int, int, int], store: Path, side: int) -> list[Row]:
    """A patch from cubes and from one array, in the system's cache and from the disk."""
    # Mapped anew for each, as training and prediction open a case.
    array = partial(map_npy, store / "image.npy", np.float16)
    whole = Volume("array", array, volume.ijk_to_lps)
    rng, rows = np.random.default_rng(0), list[Row]()
    for name, source, file in (
        ("cubes", volume, "chunks.npy"),
        ("one array", whole, "image.npy"),
    ):
        for cached in (True, False):
            clock = []
            for _ in range(31):
                corner = rng.integers(0, np.array(shape) - side + 1)
                if cached:
                    source.patch(corner, side)
                else:
                    _forget(store / file)
                begin = time.perf_counter()
                source.patch(corner, side)
                clock.append(time.perf_counter() - begin)
            where = "cache" if cached else "disk"
            rows.append({"of": name, "from": where, "ms": 1e3 * statistics.median(clock)})
    return rows


def _forget(path: Path) -> None:
    """The system's cache lets go of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def commands(folder: Path) -> list[Row]:
    """The command line on each file: seconds with imports and compilation, and peak memory."""
    rows: list[Row] = []
    for ending in FORMATS:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            program = ["-m", "jaxmark.main", "--mode=predict", f"--checkpoint={folder / 'work'}"]
            program += [f"--input={folder / f'scan{ending}'}", f"--output={out}"]
            begin = time.perf_counter()
            peak = _peak_bytes([sys.executable, *program])
            rows.append({
                "file": ending,
                "s": time.perf_counter() - begin,
                "peak_GB": peak / 1e9,
            })  # fmt: skip
    return rows


def _peak_bytes(command: Sequence[str]) -> int:
    """The largest resident set of a command that ends well, in a process that starts it alone."""
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:], stdout=sys.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], stdout=subprocess.PIPE, check=True, text=True
    )
    return 1024 * int(done.stdout)


def at_least_on_h100(settings: Cascade, side: int, landmarks: int) -> list[Row]:
    """Each stage's FLOP and bytes in bfloat16, if all is fused into the convolutions.

    An estimate: no kernel reaches the data sheet's figures. A layer takes the longer of both.
    """
    layers: dict[str, list[tuple[float, float]]] = {"stage 1": [], "stage 2": []}

    def conv(stage: str, voxels: float, taps: int, c_in: int, c_out: int, shrink: int = 1) -> None:
        flop = 2 * voxels * taps * c_in * c_out
        layers[stage].append((flop, 2 * voxels * (c_in + c_out / shrink) + 2 * taps * c_in * c_out))

    widths = settings.widths
    voxels = [(side / settings.factor) ** 3 / 8**level for level in range(len(widths))]
    for n, c_in, c_out in zip(voxels, (1, *widths), widths, strict=False):
        conv("stage 1", n, 27, c_in, c_out)
        conv("stage 1", n, 27, c_out, c_out)
    for n, coarse, fine in reversed([*zip(voxels, widths[1:], widths, strict=False)]):
        # A transposed convolution: one tap for each fine voxel.
        conv("stage 1", n, 1, coarse, fine)
        conv("stage 1", n, 27, 2 * fine, fine)
        conv("stage 1", n, 27, fine, fine)
    conv("stage 1", voxels[0], 1, widths[0], landmarks + 1)
    n, inner = landmarks * float(settings.patch) ** 3, (1, *settings.refine_widths)
    for c_in, c_out in zip(inner, inner[1:], strict=False):
        conv("stage 2", n, 27, c_in, c_out, shrink=8)
        n /= 8
    features = n / landmarks * settings.refine_widths[-1]
    layers["stage 2"].append((0, 2 * landmarks * features * settings.hidden))
    sent = {
        "stage 1": 2 * (side / settings.factor) ** 3,
        "stage 2": 2 * landmarks * float(settings.patch) ** 3,
    }
    return [
        {
            "stage": stage,
            "GFLOP": sum(flop for flop, _ in costs) / 1e9,
            "MB": sum(size for _, size in costs) / 1e6,
            "ms_at_least": 1e3 * sum(max(f / FLOP_PER_S, b / BYTES_PER_S) for f, b in costs),
            "ms_to_send": 1e3 * sent[stage] / BUS_BYTES_PER_S,
        }
        for stage, costs in layers.items()
    ]


def compiled_for_h100(settings: Experiment) -> list[Row]:
    """Each stage's program for one scan, compiled in bfloat16 as `compiled.TARGET` wants it."""
    os.environ.update(compiled.ENVIRONMENT)
    task = dataclasses.replace(_task(settings), platform="gpu", dtype=jnp.bfloat16)
    method: Cascade = settings.method
    built, there = method.build(task), compiled.on_target()
    variables = jax.eval_shape(built.init, jax.random.key(0)).variables
    x, y, z = (n // method.factor for n in task.crop)
    landmarks, n = len(task.landmarks), method.patch
    points = jax.ShapeDtypeStruct((1, landmarks, 3), jnp.float32)
    scores = jax.ShapeDtypeStruct((1, landmarks), jnp.float32)
    inputs = (
        {"image": jax.ShapeDtypeStruct((1, x, y, z, 1), jnp.float16)},
        {
            "image": jax.ShapeDtypeStruct((1, landmarks, n, n, n, 1), jnp.float16),
            **dict.fromkeys(("first", "found", *FIRST), points),
            **dict.fromkeys(("score", "evidence", "spread_mm"), scores),
        },
    )
    rows: list[Row] = []
    for number, (stage, arrays) in enumerate(zip(built.stages, inputs, strict=False), start=1):
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there),
            (variables, arrays),
        )
        known = compiled.compiled_facts(jax.jit(stage.run).lower(*shapes), {})
        moved = sum(known["moved"].values())
        rows.append({
            "stage": f"stage {number}",
            "peak_MB": known["peak"] / 1e6,
            "moved_MB": moved / 1e6,
            "ms_to_move": moved / compiled.BYTES_PER_MS,
            "kernels": known["kernels"],
        })  # fmt: skip
    return rows


def measure(folder: Path, side: int, *, with_commands: bool) -> dict[str, list[Row]]:
    """All tables."""
    settings = experiment(side)
    if not (folder / f"scan{FORMATS[-1]}").exists():
        write_scans(folder, side)
    if not (folder / "work" / "checkpoints").exists():
        write_model(folder / "work", settings)
    assert load_frame(folder / "work" / "preparation")[0].shape == (side,) * 3, "of another side"
    assert isinstance(settings.method, Cascade) and settings.phantom is not None
    landmarks = len(settings.phantom.scheme.landmarks)
    found = {"commands": commands(folder)} if with_commands else {}
    found |= breakdown(folder, load_model(folder / "work"))
    found["H100, at least"] = at_least_on_h100(settings.method, side, landmarks)
    return found


def main(argv: Sequence[str]) -> None:
    """Prints the tables."""
    # Orbax logs each file that it reads.
    logging.set_verbosity(logging.WARNING)
    if _H100.value:
        print(table(compiled_for_h100(experiment(_SIDE.value))))
        return
    folder = Path(str(_FOLDER.value))
    os.environ.update(huge_pages.environment())
    folder.mkdir(parents=True, exist_ok=True)
    found = measure(folder, _SIDE.value, with_commands=_COMMANDS.value)
    for title, rows in found.items():
        print(f"\n== {title}\n{table(rows)}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"\n{load}; peak of this process {peak / 1e9:.2f} GB")
    if _OUT.value:
        write_json(Path(_OUT.value), {"schema_version": 1, **found})


if __name__ == "__main__":
    flags.register_multi_flags_validator(
        ["folder", "h100"],
        lambda values: bool(values["folder"]) or values["h100"],
        message="needs --folder=DIR, or --h100",
    )
    app.run(main)
