"""The command line: `python -m jaxmark.main --config=FILE[:preset] --workdir=DIR --mode=run`.

`--config.data.root=FOLDER` and the like set any field of the experiment: see `jaxmark/config.py`.

Exit codes: 0 done, 1 bad input (one line on stderr a problem), 2 some scans of a batch failed and
the others are done, 3 stopped by SIGTERM or SIGINT: what was done is saved, and the same command
continues.
"""

# --help prints the text above. This is the only module that knows flags. Slow imports are inside
# of functions: --help, and worker processes, which import this module, don't need them.

# ruff: noqa: E402

from jaxmark.system import interrupts

if __name__ == "__main__":
    # Before anything that takes long to import.
    interrupts.leave_on_signals()

import copy
import dataclasses
import difflib
import math
import re
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from absl import app, flags, logging
from ml_collections import config_flags

from jaxmark.config import Experiment, to_json, validate
from jaxmark.system import huge_pages
from jaxmark.system.errors import InputError, UnwritableError
from jaxmark.system.files import write_text_atomic
from jaxmark.system.messages import say

if TYPE_CHECKING:
    from jaxmark.core.alignment import Kind
    from jaxmark.planning.draft import Wishes

STAGES = ("prepare", "train", "predict", "evaluate", "report")
MODES = ("run", *STAGES, "plan", "crossval", "check", "phantom", "align", "pack", "export")
# Modes that need a plan, where the experiment is to be planned.
PLANNED = ("run", *STAGES, "plan", "crossval", "check")
# `core.alignment.KINDS`, which takes long to import.
TRANSFORMS = ("rigid", "similarity", "affine", "thin_plate")

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="FILE.py[:preset]", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<experiment>.")
_MODE = flags.DEFINE_enum(
    "mode", "run", MODES, "run: all stages that follow, continuing an earlier run."
)
_FOLDS = flags.DEFINE_integer(
    "folds", None, "With --mode=crossval: how many; default: config.data.folds, or else 5."
)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "With experiments/auto.py: how long training may take on this device."
)
_TARGET_MM = flags.DEFINE_float(
    "target_mm", None, "With experiments/auto.py: the error that suffices; default: the smallest."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "With --input, to align, pack or export: the trained model's work dir, or a packed model "
    "(FILE.zip or URL#sha256=DIGEST); no --config. With --mode=check: work dirs whose predictions "
    "count as well, separated by commas.",
)
_INPUT = flags.DEFINE_string("input", None, "With --mode=predict: a scan, or a folder of scans.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "With --input, --mode=plan, phantom, align, pack or export: where to write."
)
_FIXED = flags.DEFINE_string("fixed", None, "With --mode=align: the scan that stays as it is.")
_MOVING = flags.DEFINE_string("moving", None, "With --mode=align: the scan brought onto it.")
_FIXED_LANDMARKS = flags.DEFINE_string(
    "fixed_landmarks", None, "With --mode=align: a landmark file instead of what the model finds."
)
_MOVING_LANDMARKS = flags.DEFINE_string(
    "moving_landmarks", None, "The same for the moving scan; with both no model is needed."
)
_TRANSFORM = flags.DEFINE_enum(
    "transform", None, TRANSFORMS, "With --mode=align: the kind of map; default: similarity."
)
_HUGE_PAGES = flags.DEFINE_bool(
    "huge_pages", True, "On a CPU: fetch large buffers in huge pages, which is faster."
)
_NATIVE = flags.DEFINE_boolean(
    "native",
    True,
    "On a CPU: compile convolutions for it where a C++ compiler is found, which is faster.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of the processes of a cluster's job (SLURM, Open MPI, ...)."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "As --distributed, without a cluster: HOST:PORT, where process 0 listens; needs --processes "
    "and --process.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: number of processes.")
_PROCESS = flags.DEFINE_integer(
    "process", None, "With --coordinator: number of this process, 0 to processes - 1."
)


def console() -> None:
    """Entry point of the `jaxmark` command."""
    interrupts.leave_on_signals()
    # absl's --help shows the flags of the started program: make them those of this module.
    sys.modules["__main__"].__doc__ = __doc__
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    # absl knows --help alone.
    sys.argv[1:] = ["--help" if argument == "-h" else argument for argument in sys.argv[1:]]
    app.run(_main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, but every mistake is one line."""
    try:
        restart_early(argv)
        argv[:] = with_trained_config(argv)
        config = config_file(argv)
        if config is not None and not Path(config[0]).is_file():
            raise InputError(config[0], "no such experiment file (--config)")
        return flags.FLAGS(argv)
    except InputError as error:
        _stop(error)
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        # An error inside the experiment file has a traceback; its last line names the error.
        _stop(lines[0] if len(lines) == 1 or lines[0][-1] != ":" else f"{lines[0]} {lines[-1]}")
    except KeyError:
        # An override of a field that does not exist.
        _stop(unknown_field(argv))
    raise AssertionError


def _home(named: Path) -> Path:
    """The work dir: --checkpoint before --workdir, but --mode=check writes to --workdir."""
    if _MODE.value == "check" and _WORKDIR.value:
        return Path(_WORKDIR.value)
    if _MODE.value == "check" and "," in (_CHECKPOINT.value or ""):
        raise InputError("--workdir", "is required with several work dirs in --checkpoint")
    return Path(_CHECKPOINT.value or _WORKDIR.value or named)


def restart_early(argv: Sequence[str]) -> None:
    """Start again with huge pages where a CPU is the only device that JAX can find.

    This comes before the experiment and JAX are imported, which takes two seconds. Where there may
    be another device, `_main` asks JAX and starts again later.
    """
    early = flags.FlagValues()
    early.set_gnu_getopt()
    for holder in (_HUGE_PAGES, _DISTRIBUTED, _COORDINATOR):
        early[holder.name] = copy.deepcopy(flags.FLAGS[holder.name])
    early(argv, known_only=True)
    alone = not (early.distributed or early.coordinator)
    if early.huge_pages and alone and huge_pages.nothing_but_a_cpu():
        huge_pages.restart_with_huge_pages()


def _main(argv: Sequence[str]) -> None:
    # Orbax logs every error with its trace before it raises it.
    logging.set_verbosity(logging.FATAL)
    try:
        if len(argv) > 1:
            hint = f": did you mean --mode={argv[1]}?" * (argv[1] in MODES)
            raise InputError("command line", f"unexpected argument {argv[1]!r}{hint}")
        pair = Pair.asked_for(_MODE.value)
        if _FOLDS.value is not None and _MODE.value != "crossval":
            raise InputError("--folds", "goes with --mode=crossval")
        if _CONFIG.value is None and (pair is None or pair.needs_model):
            if pair is not None:
                raise InputError("--checkpoint", f"is required with --mode=align: {Pair.NEEDED}")
            raise InputError("--config", "is required: an experiment file, FILE.py[:preset]")
        import jax

        from jaxmark.core import native
        from jaxmark.system import processes, programs

        distributed = _DISTRIBUTED.value or bool(_COORDINATOR.value)
        if distributed:
            processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
            # JAX handles the signals of several processes.
            interrupts.leave_signals_to_others()
        platform = jax.devices()[0].platform
        # A process that has joined others can't start again.
        if platform == "cpu" and _HUGE_PAGES.value and not distributed:
            huge_pages.restart_with_huge_pages()
        native.forbid(not _NATIVE.value)
        kept = None if distributed else programs.keep()
        experiment, wishes = None, None
        if _CONFIG.value is not None:
            experiment, wishes = for_device(_CONFIG.value, platform), wishes_of_the_file()
            # A plan is made first where there is to be one.
            experiment = validate(experiment) if wishes is None else named_by_folder(experiment)
        named = Path("runs") / experiment.name if experiment else Path()
        request = Request(
            given=experiment,
            workdir=_home(named),
            folds=_FOLDS.value,
            input=_INPUT.value,
            output=_OUTPUT.value,
            checkpoint=_CHECKPOINT.value,
            pair=pair,
        )
        begin = time.monotonic()
        announce(request, _MODE.value)
        if wishes is not None and _MODE.value in PLANNED:
            request = with_plan(request, wishes)
        elif wishes is None and _MODE.value == "plan":
            problem = "plans nothing: name experiments/auto.py, or an experiment with `wishes`"
            raise InputError("--config", problem)
        try:
            code = COMMANDS[_MODE.value](request)
        finally:
            programs.sign(kept)
        if request.input is None and request.pair is None:
            say(f"done in {(time.monotonic() - begin) / 60:.1f} minutes")
        processes.done()
        if distributed:
            sys.exit(code)
        interrupts.end(code)
    except InputError as error:
        _stop(error)
    except interrupts.Interrupted as signal:
        # Training has saved its state.
        if not distributed:
            interrupts.leave(str(signal))
        print(f"stopped by {signal}; the same command continues", file=sys.stderr)
        processes.done()
        sys.exit(interrupts.EXIT_CODE)
    except KeyboardInterrupt:
        print("stopped by SIGINT; the same command continues", file=sys.stderr)
        sys.exit(interrupts.EXIT_CODE)
    except OSError as error:
        # A disk that is full, read-only or gone. Files are written whole or not at all, so earlier
        # files are intact; the error names the file.
        if error.errno is None:
            raise
        _stop(InputError(error.filename or "a file", f"{error.strerror}"))
    except FloatingPointError as error:
        _stop(
            f"training: {error}; earlier checkpoints are intact. A smaller config.method."
            "learning_rate, or a config.method.clip_norm, may help: in another --workdir"
        )
    except (RuntimeError, MemoryError) as error:
        from jaxmark.system.memory import ran_out

        if not ran_out(error):
            raise
        # Steps and predictions raise an InputError that names a setting; this comes from elsewhere.
        _stop(f"out of memory: {' '.join(str(error).split())[:200]}")
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
        interrupts.end(1)
    sys.exit(1)


def config_file(argv: Sequence[str]) -> tuple[str, str] | None:
    """(file, preset) of the `--config` argument, before flags are parsed."""
    value = argument_of(argv, "config")
    if value is None:
        return None
    file, _, preset = value.partition(":")
    return file, preset


def with_trained_config(argv: Sequence[str]) -> list[str]:
    """The arguments; --checkpoint without --config adds the experiment file of trained models.

    Raises:
      InputError: the work dir holds no model.
    """
    workdir = argument_of(argv, "checkpoint")
    if workdir is None or argument_of(argv, "config") is not None:
        return list(argv)
    from jaxmark import trained
    from jaxmark.inference.packed import folder_of

    folder = folder_of(workdir)
    # Read the config here, where an error is printed as one line.
    trained.get_config(str(folder))
    # Of two --checkpoint arguments the last one counts.
    return [argv[0], f"--config={trained.__file__}:{folder}", *argv[1:], f"--checkpoint={folder}"]


def argument_of(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag before flags are parsed."""
    for i, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            return value or (argv[i + 1] if i + 1 < len(argv) else "")
    return None


def for_device(experiment: Experiment, platform: str) -> Experiment:
    """The experiment file's preset for this device, if the command line names none.

    The device is not known while flags are parsed, since asking for it starts the backend. So the
    flags are parsed again, with the preset and the same overrides.
    """
    file, preset = config_file(sys.argv) or ("", "")
    choose = None if preset or not file else runpy.run_path(file).get("default_preset")
    if choose is None:
        return experiment
    preset = choose(platform)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    # The file's name is a whole argument or the value of --config=.
    named = [f"{a}:{preset}" if a in (file, f"--config={file}") else a for a in sys.argv]
    values(named, known_only=True)
    say(f"preset {preset!r}, since the device is a {platform} (--config={file}:PRESET chooses)")
    return values.config


def wishes_of_the_file() -> "Wishes | None":
    """What a plan is asked for, of an experiment file with a function `wishes`; else None.

    InputError for flags about plans of which there are none.
    """
    file, preset = config_file(sys.argv) or ("", "")
    ask = runpy.run_path(file).get("wishes") if file else None
    asked = {holder.name: holder.value for holder in (_MINUTES, _TARGET_MM)}
    for name, value in asked.items():
        if value is not None and ask is None:
            raise InputError(f"--{name}", "goes with --config=experiments/auto.py")
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name}", f"{value} is not a positive number")
    return None if ask is None else dataclasses.replace(ask(preset), **asked)


def named_by_folder(experiment: Experiment) -> Experiment:
    """Called by its data, so that plans for several folders have work dirs of their own."""
    name = re.sub(r"\W+", "_", Path(experiment.data.root).expanduser().resolve().name)
    return dataclasses.replace(experiment, name=f"{experiment.name}_{name}")


def with_plan(request: "Request", wishes: "Wishes") -> "Request":
    """The request with the experiment that is planned for its folder."""
    from jaxmark.planning.draft import Draft
    from jaxmark.planning.kept import plan_in
    from jaxmark.planning.placing import decide_kind

    given = config_flags.get_override_values(flags.FLAGS["config"])
    if _MODE.value == "check":
        draft = Draft(request.experiment, given)
        decide_kind(draft)
        return dataclasses.replace(request, given=validate(draft.experiment))
    anew = _MODE.value == "plan"
    made = plan_in(request.workdir, request.experiment, given, wishes, anew=anew)
    return dataclasses.replace(request, given=made.experiment)


def unknown_field(argv: Sequence[str]) -> str:
    """A message that names the unknown field in `--config.x.y` and the nearest existing one."""
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


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two scans of --mode=align; fields have the names of their flags."""

    fixed: str
    moving: str
    fixed_landmarks: str | None
    moving_landmarks: str | None
    transform: "Kind"

    NEEDED: ClassVar[str] = (
        "the work dir of a trained model, or else --fixed_landmarks and --moving_landmarks"
    )

    @classmethod
    def asked_for(cls, mode: str) -> "Pair | None":
        """The pair from the flags; None in other modes. InputError for flags that do not fit."""
        values: dict[str, Any] = {
            field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(cls)
        }
        if mode != "align":
            for name, value in values.items():
                if value is not None:
                    raise InputError(f"--{name}", "goes with --mode=align")
            return None
        for name in ("fixed", "moving", "output"):
            if not flags.FLAGS[name].value:
                what = "the folder of the results" if name == "output" else "a scan"
                raise InputError(f"--{name}", f"is required with --mode=align: {what}")
        if _INPUT.value is not None:
            raise InputError("--input", "goes with --mode=predict; here it is --fixed and --moving")
        if _DISTRIBUTED.value or _COORDINATOR.value:
            raise InputError("--distributed", "does not go with --mode=align, which is one process")
        pair = cls(**{**values, "transform": values["transform"] or "similarity"})
        if _CHECKPOINT.value is not None and not pair.needs_model:
            raise InputError("--checkpoint", "is of no use: both scans have landmark files")
        return pair

    @property
    def needs_model(self) -> bool:
        """Whether a scan has no landmark file."""
        return self.fixed_landmarks is None or self.moving_landmarks is None


@dataclasses.dataclass(frozen=True)
class Request:
    """The values of the command line, except its mode."""

    given: Experiment | None  # None: to align scans that have landmark files
    workdir: Path
    folds: int | None
    input: str | None
    output: str | None
    checkpoint: str | None
    pair: Pair | None

    @property
    def experiment(self) -> Experiment:
        """The experiment, for commands that need one."""
        assert self.given is not None
        return self.given

    def no_scans(self) -> None:
        """InputError for flags that only commands on raw scans take."""
        if self.input is not None:
            raise InputError("--input", "goes with --mode=predict")
        if self.checkpoint is not None:
            raise InputError("--checkpoint", "goes with --mode=predict and --input")


def _stages(*stages: str) -> Callable[[Request], int]:
    """The command that runs these stages of the experiment."""

    def command(request: Request) -> int:
        from jaxmark import workflow

        request.no_scans()
        workflow.run_stages(request.experiment, request.workdir, stages)
        return 0

    return command


def _crossval(request: Request) -> int:
    from jaxmark.crossval import cross_validate

    request.no_scans()
    if _DISTRIBUTED.value or _COORDINATOR.value:
        problem = (
            "does not go with --mode=crossval; train each fold as a job: --mode=train "
            "--config.data.folds=5 --config.data.fold=0 --workdir=WORKDIR/folds/0"
        )
        raise InputError("--distributed", problem)
    cross_validate(request.experiment, request.workdir, request.folds)
    return 0


def _predict(request: Request) -> int:
    """Predict the evaluated split of the cohort; or raw scans, with --input."""
    if request.input is None:
        return _stages("predict")(request)
    if request.output is None:
        raise InputError("--output", "is required with --input: the folder of the results")
    from jaxmark import workflow

    outcome = workflow.predict_batch(
        request.experiment, request.workdir, request.input, request.output
    )
    return 2 if outcome.failures else 0


def _plan(request: Request) -> int:
    """The plan is made, and lies in the work dir."""
    from jaxmark.planning.kept import EXPERIMENT_FILE

    request.no_scans()
    written = request.workdir / EXPERIMENT_FILE
    if request.output is not None:
        write_text_atomic(Path(request.output), written.read_text("utf-8"))
        written = Path(request.output)
    say(f"edit and run: --config={written} --workdir=ANOTHER_WORKDIR")
    say("or run as it is: the same command without --mode=plan")
    return 0


def _check(request: Request) -> int:
    """Check annotations; the exit code is 0 also if there are suspicions."""
    from jaxmark import workflow
    from jaxmark.system import processes

    if request.input is not None:
        raise InputError("--input", "goes with --mode=predict; the cohort is config.data.root")
    if request.output is not None:
        raise InputError("--output", "does not go with --mode=check, which writes WORKDIR/check")
    predicted = [folder for folder in (request.checkpoint or "").split(",") if folder]
    with processes.primary_first("check"):
        if processes.primary():
            workflow.check(request.experiment, request.workdir, predicted)
    return 0


def _phantom(request: Request) -> int:
    from jaxmark import workflow
    from jaxmark.system import processes

    request.no_scans()
    name = request.experiment.name
    with processes.primary_first("phantom"):
        if request.experiment.phantom is None:
            raise InputError("--mode=phantom", f"experiment {name!r} has no phantom")
        if request.output is None:
            problem = "is required with --mode=phantom: the folder of the cohort"
            raise InputError("--output", problem)
        workflow.write_phantom(request.experiment, request.output)
    return 0


def _pack(request: Request) -> int:
    from jaxmark import workflow

    if request.input is not None:
        raise InputError("--input", "goes with --mode=predict")
    if request.output is None:
        raise InputError("--output", "is required with --mode=pack: the file, NAME.zip")
    workflow.pack(request.workdir, request.output)
    return 0


def _export(request: Request) -> int:
    from jaxmark import workflow

    if request.input is not None:
        raise InputError("--input", "goes with --mode=predict")
    if request.output is None:
        raise InputError("--output", "is required with --mode=export: NAME.onnx or NAME.jax.zip")
    workflow.export(request.workdir, request.output)
    return 0


def _align(request: Request) -> int:
    from jaxmark import workflow

    pair = request.pair
    assert pair is not None and request.output is not None
    workflow.align(
        pair.fixed,
        pair.moving,
        request.output,
        transform=pair.transform,
        workdir=request.workdir if pair.needs_model else None,
        experiment=request.given,
        fixed_landmarks=pair.fixed_landmarks,
        moving_landmarks=pair.moving_landmarks,
    )
    return 0


# Mode -> what is done; returns the exit code.
COMMANDS: dict[str, Callable[[Request], int]] = {
    "run": _stages(*STAGES),
    **{stage: _stages(stage) for stage in STAGES},
    "plan": _plan,
    "crossval": _crossval,
    "predict": _predict,
    "check": _check,
    "phantom": _phantom,
    "align": _align,
    "pack": _pack,
    "export": _export,
}


def announce(request: Request, mode: str) -> None:
    """Print mode, place and devices; InputError if processes got different commands."""
    import jax

    from jaxmark.core import native
    from jaxmark.system import processes
    from jaxmark.system.devices import data_mesh

    processes.check_alike(
        "command",
        [
            to_json(request.given) if request.given else None,
            str(request.workdir),
            mode,
            request.input,
            request.output,
        ],
    )
    devices = jax.devices()
    kind = devices[0].device_kind
    place = (mode == "phantom" and request.output) or request.workdir
    what = f"{request.given.name}: {mode} in {place}" if request.given else mode
    say(f"{what}, {len(devices)} x {kind} ({devices[0].platform})")
    if devices[0].platform == "cpu":
        say(f"huge pages for large buffers (--[no]huge_pages): {huge_pages.state()}")
        say(f"convolutions compiled for this CPU (--[no]native): {native.state(data_mesh())}")


if __name__ == "__main__":
    console()
