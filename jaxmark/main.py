"""The command line: `python -m jaxmark.main --config=FILE[:preset] --workdir=DIR --mode=run`.

The only place that knows flags. Exit codes: 0 done, 1 bad input (one line on stderr a problem), 2
some scans of a batch failed and the others are done, 3 stopped by SIGTERM or SIGINT: what was done
is saved, and the same command continues.
"""

import contextlib
import dataclasses
import difflib
import os
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags

from jaxmark import trained
from jaxmark.config import Experiment, check_same, to_json, validate
from jaxmark.core.anatomy import COW19
from jaxmark.data.cases import PreparedCase
from jaxmark.data.cohort import read_cohort
from jaxmark.data.frame import load_frame, save_frame
from jaxmark.data.phantoms.cow.cohort import RECIPE_VERSION, write_cohort
from jaxmark.data.prepare import Prepared, cache_folder, digest, prepare
from jaxmark.data.unpaired import place_unpaired, read_unpaired
from jaxmark.inference.predictor import Predictor, volumes
from jaxmark.methods.method import LandmarkSets, Method, Task
from jaxmark.results import batch, calibration, contact_sheet, evaluate, predict, report
from jaxmark.system import huge_pages, interrupts, processes
from jaxmark.system.devices import data_mesh, local_mesh
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, write_json
from jaxmark.system.lock import locked
from jaxmark.training.checkpoints import UnwritableError
from jaxmark.training.loop import train

STAGES = ("prepare", "train", "predict", "evaluate", "report")
MODES = ("run", *STAGES, "phantom")

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="FILE.py[:preset]", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<experiment>.")
_MODE = flags.DEFINE_enum(
    "mode", "run", MODES, "run: all stages that follow, continuing an earlier run."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "With --input: the work dir of the trained model; needs no --config."
)
_INPUT = flags.DEFINE_string("input", None, "With --mode=predict: a scan, or a folder of scans.")
_OUTPUT = flags.DEFINE_string("output", None, "With --input or --mode=phantom: where to write.")
_HUGE_PAGES = flags.DEFINE_bool(
    "huge_pages", True, "On a CPU: fetch large buffers in huge pages, which is faster."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of the processes of a cluster's job (SLURM, Open MPI, ...)."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "The same without a cluster: HOST:PORT, where process 0 listens; needs:"
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is: 0 to processes - 1.")


def console() -> None:
    """Entry point of the `jaxmark` command."""
    app.run(_main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, but every mistake is one line."""
    try:
        argv[:] = with_trained_config(argv)
        config = config_file(argv)
        if config is not None and not Path(config[0]).is_file():
            raise InputError(config[0], "no such experiment file (--config)")
        return flags.FLAGS(argv)
    except InputError as error:
        _stop(error)
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        # An error inside the experiment file comes with its traceback, what it is in the last line.
        _stop(lines[0] if len(lines) == 1 or lines[0][-1] != ":" else f"{lines[0]} {lines[-1]}")
    except KeyError:
        # An override of a field that does not exist.
        _stop(unknown_field(argv))
    raise AssertionError


def _main(argv: Sequence[str]) -> None:
    # Orbax logs every error with its trace before it raises it.
    logging.set_verbosity(logging.FATAL)
    try:
        if len(argv) > 1:
            raise InputError("command line", f"unexpected argument {argv[1]!r}")
        if _CONFIG.value is None:
            raise InputError("--config", "is required: an experiment file, FILE.py[:preset]")
        distributed = _DISTRIBUTED.value or bool(_COORDINATOR.value)
        if distributed:
            processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        platform = jax.devices()[0].platform
        # A process that others have met can't start again.
        if platform == "cpu" and _HUGE_PAGES.value and not distributed:
            huge_pages.restart_with_huge_pages()
        experiment = validate(for_device(_CONFIG.value, platform))
        workdir = Path(_CHECKPOINT.value or _WORKDIR.value or Path("runs") / experiment.name)
        # Of several processes JAX handles the signals.
        handled = interrupts.handling(interrupts.raising)
        with contextlib.nullcontext() if distributed else handled:
            code = run(experiment, workdir, _MODE.value, _INPUT.value, _OUTPUT.value)
        processes.done()
        if code:
            sys.exit(code)
    except InputError as error:
        _stop(error)
    except KeyboardInterrupt as signal:
        print(f"stopped by {signal}; the same command continues", file=sys.stderr)
        if isinstance(signal, interrupts.Interrupted):
            processes.done()
        sys.exit(interrupts.EXIT_CODE)
    except OSError as error:
        # A disk that is full, read-only or gone. Files are written whole or not at all, so what
        # was there is there; writers say which file it was.
        if error.errno is None:
            raise
        _stop(InputError(error.filename or "a file", f"{error.strerror}"))
    except FloatingPointError as error:
        _stop(
            f"training: {error}; earlier checkpoints are intact. A smaller config.method."
            "learning_rate, or a config.method.clip_norm, may help: in another --workdir"
        )
    except ExceptionGroup as group:
        problems, others = group.split(InputError)
        if others is not None or problems is None:
            raise
        _stop(*problems.exceptions)


def _stop(*problems: object) -> None:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if any(isinstance(problem, UnwritableError) for problem in problems):
        # At the end of Python each of TensorStore's threads would print a trace.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


def config_file(argv: Sequence[str]) -> tuple[str, str] | None:
    """(file, preset) of the `--config` argument, before flags are parsed."""
    value = argument_of(argv, "config")
    if value is None:
        return None
    file, _, preset = value.partition(":")
    return file, preset


def with_trained_config(argv: Sequence[str]) -> list[str]:
    """The arguments, with the experiment file of trained models where only --checkpoint is given.

    Raises:
      InputError: the work dir holds no model.
    """
    workdir = argument_of(argv, "checkpoint")
    if workdir is None or argument_of(argv, "config") is not None:
        return list(argv)
    # Once here, where a mistake is one line.
    trained.get_config(workdir)
    return [argv[0], f"--config={trained.__file__}:{workdir}", *argv[1:]]


def argument_of(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag before flags are parsed."""
    for i, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            return value or (argv[i + 1] if i + 1 < len(argv) else "")
    return None


def for_device(experiment: Experiment, platform: str) -> Experiment:
    """The preset that the experiment file has for this device, if the command line names none.

    Not while flags are parsed: asking for the device starts the backend. So the flags are parsed
    once more, with the preset in its place and the same overrides.
    """
    file, preset = config_file(sys.argv) or ("", "")
    choose = None if preset or not file else runpy.run_path(file).get("default_preset")
    if choose is None:
        return experiment
    preset = choose(platform)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    # The file's name is an argument of its own or the end of one; nothing else ends in it.
    named = [f"{a}:{preset}" if a in (file, f"--config={file}") else a for a in sys.argv]
    values(named, known_only=True)
    say(f"preset {preset!r}, since the device is a {platform} (--config={file}:PRESET chooses)")
    return values.config


def unknown_field(argv: Sequence[str]) -> str:
    """Which `--config.x.y` names no field, and the nearest one that exists."""
    config = config_file(argv)
    if config is None:
        return "--config: is required before overrides of its fields"
    get_config = runpy.run_path(config[0])["get_config"]
    experiment = get_config(config[1]) if config[1] else get_config()
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        holder: Any = experiment
        parts = argument[2:].partition("=")[0].split(".")
        for depth, part in enumerate(parts[1:], start=1):
            names = (
                [f.name for f in dataclasses.fields(holder)]
                if dataclasses.is_dataclass(holder)
                else []
            )
            if part not in names:
                near = difflib.get_close_matches(part, names, n=1, cutoff=0) or ["nothing"]
                path = ".".join(parts[:depth])
                return f"--{'.'.join(parts)}: no such field; nearest: {path}.{near[0]}"
            holder = getattr(holder, part)
    return "--config: an override names no field of the experiment"


def say(line: str) -> None:
    """One line of progress for a person."""
    print(line, flush=True)


def run(
    experiment: Experiment,
    workdir: Path,
    mode: str,
    scans: str | None = None,
    output: str | None = None,
) -> int:
    """One mode of the command line, or all of them; the exit code."""
    begin = time.monotonic()
    processes.check_alike("command", [to_json(experiment), str(workdir), mode, scans, output])
    mesh = data_mesh()
    device = jax.devices()[0]
    kind = f"{mesh.size} x {device.device_kind} ({device.platform})"
    say(f"{experiment.name}: {mode} in {workdir}, {kind}")
    if device.platform == "cpu":
        say(f"huge pages for large buffers (--[no]huge_pages): {huge_pages.state()}")
    if scans is None and _CHECKPOINT.value is not None:
        raise InputError("--checkpoint", "goes with --mode=predict and --input")
    if scans is not None:
        if mode != "predict":
            raise InputError("--input", "goes with --mode=predict")
        if output is None:
            raise InputError("--output", "is required with --input: the folder of the results")
        return predict_batch(experiment, workdir, Path(scans), Path(output))
    if mode == "phantom":
        with processes.primary_first("phantom"):
            write_phantom(experiment, output)
    else:
        with owned(workdir):
            run_stages(experiment, workdir, STAGES if mode == "run" else (mode,), mesh)
    say(f"done in {(time.monotonic() - begin) / 60:.1f} minutes")
    return 0


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """The folder is this run's alone; of several processes the primary asks for it."""
    with contextlib.ExitStack() as stack:
        with processes.primary_first(f"lock of {folder}"):
            if processes.primary():
                stack.enter_context(locked(folder))
        yield


def run_stages(experiment: Experiment, workdir: Path, todo: Sequence[str], mesh: Mesh) -> None:
    """Some of `STAGES`, in their order."""
    check_workdir(workdir, experiment)
    with processes.primary_first("preparation"):
        prepared, unpaired = prepare_experiment(experiment, workdir)
    method = build(experiment, prepared.landmarks, unpaired, prepared.presence)
    if "train" in todo:
        train(
            method,
            experiment,
            cases=prepared.split("train"),
            validation=prepared.split("val"),
            landmarks=prepared.landmarks,
            workdir=workdir,
            mesh=mesh,
            unpaired=unpaired,
        )
    predictor = Predictor(method, experiment, mesh)
    if "train" in todo or "predict" in todo:
        observe_validation(method, experiment, prepared, workdir, mesh, predictor)
    if set(todo) <= {"prepare", "train"}:
        return
    split, cases = evaluated_split(prepared, experiment)
    if "predict" in todo:
        params, step = predict.load_params(method, experiment, workdir, mesh)
        say(f"predicting the {len(cases)} cases of split {split!r} with the model of step {step}")
        coverage = experiment.predict.coverage
        found = predict.find(predictor, params, volumes(cases), len(cases), "predicting")
        if processes.primary():
            folder = workdir / "predictions"
            predict.write_split(
                found,
                prepared.landmarks,
                experiment.predict.decoder,
                {
                    name: calibration.load(workdir, prepared.landmarks, step, name, coverage)
                    for name in predict.DECODERS
                },
                folder,
            )
            learned = predict.write_learned(method, params, prepared.landmarks, folder)
            if learned:
                say(learned)
    if "evaluate" in todo and processes.primary():
        summary = evaluate.evaluate_cases(
            prepared.split("train"),
            cases,
            landmarks=prepared.landmarks,
            thresholds_mm=experiment.evaluate.sdr_thresholds_mm,
            # Promises that were learned from these cases can't be judged by them.
            promised=None if split == "val" else experiment.predict.coverage,
            predictions=workdir / "predictions" / f"landmarks_{experiment.predict.decoder}.csv",
            folder=workdir / "evaluation",
        )
        say(evaluate.headline(summary))
    if "report" in todo and processes.primary():
        points = evaluate.read_points(workdir / "evaluation")
        page = report.write_report(workdir, report.overlay_cases(points, cases))
        say(f"report: {page}")


def observe_validation(
    method: Method,
    experiment: Experiment,
    prepared: Prepared,
    workdir: Path,
    mesh: Mesh,
    predictor: Predictor,
) -> None:
    """Write what predictions of the validation cases show of the model, if it is not written."""
    cases = prepared.split("val")
    if not cases:
        return
    params, step = predict.load_params(method, experiment, workdir, mesh)
    known = False
    try:
        coverage = experiment.predict.coverage
        if (workdir / calibration.FILE).exists():
            calibration.load(workdir, prepared.landmarks, step, "subvoxel", coverage)
            known = True
    except InputError:
        pass  # of another step, or damaged: made anew
    if processes.from_primary("calibration", known):
        return
    found = predict.find(predictor, params, volumes(cases), len(cases), "calibrating")
    if processes.primary():
        calibration.save(calibration.observe(found, cases, prepared.landmarks, step), workdir)


def load_model(experiment: Experiment, workdir: Path, mesh: Mesh) -> batch.Model:
    """The trained model in a work dir, ready for scans never seen."""
    check_same(read_json(workdir / "config.json"), experiment, workdir, parts=("method",))
    preparation = workdir / "preparation"
    frame, landmarks = load_frame(preparation)
    data = experiment.data
    if frame.shape != tuple(n + 2 * data.margin for n in data.crop):
        raise InputError(
            "config.data.crop", f"with its margin is not {frame.shape}, the model's in {workdir}"
        )
    method = build(experiment, landmarks)
    params, step = predict.load_params(method, experiment, workdir, mesh)
    decoder, coverage = experiment.predict.decoder, experiment.predict.coverage
    return batch.Model(
        experiment=experiment,
        preparation=preparation,
        landmarks=landmarks,
        predictor=Predictor(method, experiment, mesh),
        params=params,
        calibration=calibration.load(workdir, landmarks, step, decoder, coverage),
    )


def predict_batch(experiment: Experiment, workdir: Path, scans: Path, folder: Path) -> int:
    """Landmarks of raw scans by the model in a work dir; the exit code."""
    # What is quickly seen first: loading the model takes seconds, finding scans may take minutes.
    config = workdir / "config.json"
    if not config.is_file():
        raise InputError(workdir, f"holds no trained model: there is no {config.name}")
    sources = batch.scans_at(scans)
    # Each process predicts scans of its own.
    model = load_model(experiment, workdir, local_mesh())
    with owned(folder / "batch"):
        outcome = batch.predict_scans(model, sources, folder)
    say(outcome.summary(folder))
    for error in outcome.failures.values():
        say(f"failed: {error}")
    return 2 if outcome.failures else 0


def write_phantom(experiment: Experiment, output: str | None) -> None:
    """The experiment's synthetic cohort as files for any tool."""
    if experiment.phantom is None:
        raise InputError("--mode=phantom", f"experiment {experiment.name!r} has no phantom")
    if output is None:
        raise InputError("--output", "is required with --mode=phantom: the folder of the cohort")
    write_cohort(Path(output), experiment.phantom, experiment.data.workers)
    say(f"synthetic cohort written to {output}")


def evaluated_split(prepared: Prepared, experiment: Experiment) -> tuple[str, list[PreparedCase]]:
    """`config.predict.split` and its cases; where it is empty, test, or val if there is no test."""
    name = experiment.predict.split or ("test" if prepared.splits["test"] else "val")
    cases = prepared.split(name)
    if not cases:
        raise InputError("config.predict.split", f"the split {name!r} has no cases")
    return name, cases


def check_workdir(workdir: Path, experiment: Experiment) -> None:
    """InputError where the work dir holds a model of another config: it must not be overwritten."""
    path = workdir / "config.json"
    if path.exists() and (workdir / "checkpoints").exists():
        check_same(read_json(path), experiment, path)


def prepare_experiment(
    experiment: Experiment, workdir: Path
) -> tuple[Prepared, LandmarkSets | None]:
    """The cohort, own or phantom, prepared, and the unpaired one for methods that learn from it.

    Writes config and frame into the work dir.
    """
    data = experiment.data
    if not data.root:
        if experiment.phantom is None:
            raise InputError("config.data.root", "is empty; set it to the folder of your scans")
        settings = {"recipe": RECIPE_VERSION, **to_json(experiment)["phantom"]}
        root = cache_folder(data) / f"phantom-{digest(settings)}"
        write_cohort(root, experiment.phantom, data.workers)
        data = dataclasses.replace(data, root=str(root), landmarks=COW19.landmarks)
    cohort = read_cohort(data)
    # Read before anything is prepared: a mistake in it should show at once.
    sets = read_unpaired(data, cohort.names) if experiment.method.needs_unpaired else None
    begin = time.monotonic()
    prepared = prepare(cohort, data)
    sizes = ", ".join(f"{len(cases)} {split}" for split, cases in prepared.splits.items())
    say(
        f"prepared cases: {sizes}; {len(prepared.landmarks)} landmarks; "
        f"{time.monotonic() - begin:.1f} s; cache {cache_folder(data)}"
    )
    for line in prepared.warnings():
        say(f"warning: {line}")
    unpaired = None
    if sets is not None:
        path, by_case = sets
        unpaired = unpaired_landmarks(by_case, prepared, data.unpaired_align, path)
    if processes.primary():
        write_json(workdir / "config.json", {"schema_version": 1, **to_json(experiment)})
        preparation = workdir / "preparation"
        save_frame(prepared.frame, prepared.landmarks, preparation)
        sheets = contact_sheet.write_contact_sheets(prepared, preparation)
        say(f"look at the prepared cases: {', '.join(map(str, sheets))}")
    return prepared, unpaired


def unpaired_landmarks(
    sets: dict[str, np.ndarray], prepared: Prepared, align: str, path: Path
) -> LandmarkSets:
    """Landmarks without scans as methods take them; says how many there are."""
    ijk = place_unpaired(sets, prepared.split("train"), prepared.frame, align, path)
    present = np.isfinite(ijk).all(-1)
    given = sum(int(np.isfinite(points).all(-1).sum()) for points in sets.values())
    outside = given - int(present.sum())
    say(
        f"landmarks of {len(sets)} people without scans, {path}: {present.sum()} points"
        + (f"; {outside} more lie outside of the prepared volume and are left out" * bool(outside))
    )
    if not present.any():
        raise InputError(
            path,
            "no landmark lies in the prepared volume; are the sets in another frame? "
            "--config.data.unpaired_align=rigid",
        )
    return LandmarkSets(np.nan_to_num(ijk).astype(np.float32), present)


def build(
    experiment: Experiment,
    landmarks: tuple[str, ...],
    unpaired: LandmarkSets | None = None,
    presence: float = 0.5,
) -> Method:
    """The method of an experiment; bfloat16 arithmetic where there is an accelerator.

    What is known of the training cases, `unpaired` and `presence`, matters to training alone.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    data = experiment.data
    task = Task(
        landmarks=landmarks,
        crop=data.crop,
        margin=data.margin,
        spacing_mm=data.spacing_mm,
        augment=experiment.augment,
        dtype=jnp.float32 if on_cpu else jnp.bfloat16,
        presence=presence,
        unpaired=unpaired,
    )
    return experiment.method.build(task)


if __name__ == "__main__":
    console()
