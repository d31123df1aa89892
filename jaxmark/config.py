"""What an experiment is: typed dataclasses, with every default in one place.

An experiment file has a function `get_config(preset) -> Experiment`. On the command line every
field can be set (`--config.train.batch=4`); an unknown one or a wrong type is refused.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmark.system.errors import InputError


@dataclasses.dataclass
class Data:
    """Where scans and landmarks come from and how they are made into cases of one shape.

    Lengths are millimetres, shapes are voxels in (X, Y, Z) order.
    """

    # A folder with `images/` and `landmarks/` (or `landmarks.csv`), or in the layout of nnU-Net or
    # BIDS; empty: the phantom, if any.
    root: str = ""
    # Which image of a case, where it has several: the last part of its name (BIDS "angio", nnU-Net
    # "0000").
    suffix: str = ""
    # Frame of landmark files that don't state theirs: "LPS", "RAS" or "" (then they must).
    frame: str = ""
    # Landmarks of another cohort, for methods that learn from them: a table (CSV), or a folder of
    # landmark files. Empty: `unpaired.csv` in `root`, if it is there.
    unpaired: str = ""
    # How they come into the prepared volumes: "none" (their frame is the common one already), or a
    # "rigid" or "similarity" fit of each set to the landmarks of a training case.
    unpaired_align: str = "none"
    # Landmark names in order; empty: taken from the files, which must then all have the same ones.
    landmarks: tuple[str, ...] = ()
    # Used where the folder has no `splits.json`.
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0
    # Share of the training split that is used, for learning curves: less is a subset of more.
    train_fraction: float = 1.0
    # How scans are brought together: "none" (world frames agree already), "center" (centres of
    # mass), "rigid", "similarity" or "affine" (intensity registration to `template`).
    register: str = "none"
    # What is compared: "correlation" (scans that look alike), "mutual_information" (Mattes'; heads,
    # whose contrast differs from scanner to scanner).
    metric: str = "correlation"
    # How far a scan may be turned from the template: 180 is anywhere, 30 suits headers that agree.
    search_degrees: float = 180.0
    # A training case or a scan file, to which all are registered; empty: the most typical case.
    template: str = ""
    # Where the template lies in a frame that several modalities share (that of the other modality's
    # template): a transform file of ITK (fixed: the shared frame, moving: the template), ...
    template_transform: str = ""
    # ... or masks of one structure of one person, in the template's frame and in the shared one.
    template_mask: str = ""
    shared_mask: str = ""
    spacing_mm: tuple[float, float, float] = (0.513, 0.513, 0.8)
    crop: tuple[int, int, int] = (192, 160, 96)
    # Voxels kept around the crop on each side, so that augmentation moves over real voxels.
    margin: int = 8
    # What becomes 0 and 1: "percentiles" of the voxels around the crop (MRA, whose units mean
    # nothing), or a fixed "window" with all beyond cut off (CTA, in Hounsfield units).
    intensity: str = "percentiles"
    intensity_percentiles: tuple[float, float] = (0.5, 99.5)
    intensity_window: tuple[float, float] = (0.0, 700.0)
    # Folder of prepared cases; empty: `jaxmark` in the user's cache folder.
    cache: str = ""
    # Processes that prepare; 0: one a CPU core.
    workers: int = 0


@dataclasses.dataclass
class Phantom:
    """The synthetic Circle-of-Willis cohort used where `data.root` is empty."""

    train: int = 70
    val: int = 10
    test: int = 32
    seed: int = 0
    # "MRA" (time of flight) or "CTA".
    modality: str = "MRA"
    spacing_mm: tuple[float, float, float] = (0.513, 0.513, 0.8)
    # Voxels of a scan.
    shape: tuple[int, int, int] = (208, 176, 112)
    # How the heads lie: standard deviations about and along each axis, as a registration leaves.
    rotation_sd_degrees: float = 3.0
    translation_sd_mm: float = 2.0
    # Share of people with stenoses and aneurysms.
    pathology: float = 0.0
    # Are landmarks annotated where a segment that should meet there is missing? The papers do; if
    # not, the files say that they are absent.
    annotate_missing: bool = True
    # Landmark sets of further people, without scans: the papers' unpaired second modality.
    unpaired: int = 500


@dataclasses.dataclass
class Augment:
    """Random changes made on the device; all uniform in [-value, value], 0 is off."""

    # At most the margin of the prepared cases.
    translation_voxels: int = 4
    rotation_degrees: float = 0.0
    # Relative: 0.1 is a factor between 0.9 and 1.1.
    scale: float = 0.0
    # Relative contrast and additive brightness on intensities that lie in about [0, 1].
    contrast: float = 0.0
    brightness: float = 0.0
    # Standard deviation of added Gaussian noise.
    noise: float = 0.0


@dataclasses.dataclass
class Train:
    """The loop: how many, how often, and what is kept."""

    batch: int = 1
    # Steps between lines of the log.
    log_every: int = 10
    # Steps between validations, each followed by a checkpoint.
    validate_every: int = 200
    keep_checkpoints: int = 2
    # Threads that read cases and batches kept ready ahead of the step.
    loader_threads: int = 4
    prefetch: int = 4
    tensorboard: bool = False


@dataclasses.dataclass
class Predict:
    """How heatmaps become positions: "argmax" (the papers') or "subvoxel"."""

    decoder: str = "subvoxel"
    # Share of landmarks that are to lie within the radius that is stated for each.
    coverage: float = 0.9
    batch: int = 1
    # Which split is predicted and evaluated; empty: test, or val where there is no test split.
    split: str = ""
    # "best" on validation, or "last".
    checkpoint: str = "best"
    # Draw each raw scan with its landmarks; it takes about as long as a registration.
    pictures: bool = True


@dataclasses.dataclass
class Evaluate:
    """What is reported."""

    sdr_thresholds_mm: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)


@dataclasses.dataclass
class Experiment:
    """One experiment; `method` is the settings dataclass of a module in `jaxmark.methods`."""

    method: Any
    name: str = "experiment"
    seed: int = 0
    data: Data = dataclasses.field(default_factory=Data)
    # None: the experiment needs data of its own.
    phantom: Phantom | None = None
    augment: Augment = dataclasses.field(default_factory=Augment)
    train: Train = dataclasses.field(default_factory=Train)
    predict: Predict = dataclasses.field(default_factory=Predict)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The whole resolved config as JSON types; `method` also carries its class name."""
    tree = dataclasses.asdict(experiment)
    tree["method"] = {"class": type(experiment.method).__name__, **tree["method"]}
    # Through JSON once: tuples become lists, as in what is read back.
    return json.loads(json.dumps(tree, allow_nan=False))


def from_json(tree: Mapping[str, Any], methods: Mapping[str, type], where: Path) -> "Experiment":
    """The experiment that `to_json` described; `methods` are settings classes by name.

    Raises:
      InputError: about the file `where`, if it is not the config of a run, or of a method that is
        not one of these.
    """
    try:
        method = dict(tree["method"])
        name = method.pop("class")
        if name not in methods:
            raise InputError(where, f"is of the method {name!r}; --config has to name its file")
        parts = {
            "data": Data, "augment": Augment, "train": Train, "predict": Predict,
            "evaluate": Evaluate, "phantom": Phantom,
        }  # fmt: skip
        fields: dict[str, Any] = {
            key: _filled(parts[key], value) if key in parts and value is not None else value
            for key, value in tree.items()
            if key not in ("method", "schema_version")
        }
        return Experiment(method=_filled(methods[name], method), **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(where, f"is not the config of a run ({error})") from error


def _filled(kind: type, tree: Mapping[str, Any]) -> Any:
    """A dataclass of JSON types; no field of a config is a list, but many are tuples."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()})


# Parts of a config that a trained model belongs to; how it is logged or predicted may change.
_BINDING = ("method", "data", "phantom", "augment", "seed")
_FREE = ("cache", "workers")


def check_same(
    found: Mapping[str, Any], experiment: Experiment, where: Path, parts: Sequence[str] = _BINDING
) -> None:
    """InputError where `found`, the config of an earlier run, is of another model or data."""
    wanted = to_json(experiment)
    differing = []
    for part in parts:
        if part not in found:
            raise InputError(where, f"is not the config of a run: it lacks {part!r}")
        old, new = found[part], wanted[part]
        path = f"config.{part}."
        if not isinstance(new, dict) or not isinstance(old, dict):
            old, new, path = {"": old}, {"": new}, f"config.{part}"
        differing += [
            f"{path}{name} = {old.get(name)}, not {new[name]}"
            for name in new
            if name not in _FREE and old.get(name) != new[name]
        ]
    if differing:
        raise InputError(
            where, f"belongs to a run with {'; '.join(differing)}; use another --workdir"
        )


def validate(experiment: Experiment) -> Experiment:
    """The experiment itself; InputError that names the first field with an impossible value."""
    data, augment, train = experiment.data, experiment.augment, experiment.train
    at_least = {
        "data.margin": (data.margin, 0),
        "data.workers": (data.workers, 0),
        "data.val_fraction": (data.val_fraction, 0),
        "data.test_fraction": (data.test_fraction, 0),
        "data.search_degrees": (data.search_degrees, 0),
        "train.batch": (train.batch, 1),
        "train.log_every": (train.log_every, 1),
        "train.validate_every": (train.validate_every, 1),
        "train.keep_checkpoints": (train.keep_checkpoints, 1),
        "train.loader_threads": (train.loader_threads, 1),
        "train.prefetch": (train.prefetch, 1),
        "predict.batch": (experiment.predict.batch, 1),
        **{
            f"augment.{field.name}": (getattr(augment, field.name), 0)
            for field in dataclasses.fields(augment)
        },
    }
    if experiment.phantom is not None:
        at_least |= {
            "phantom.train": (experiment.phantom.train, 1),
            "phantom.val": (experiment.phantom.val, 0),
            "phantom.test": (experiment.phantom.test, 0),
            "phantom.unpaired": (experiment.phantom.unpaired, 0),
            "phantom.pathology": (experiment.phantom.pathology, 0),
            "phantom.rotation_sd_degrees": (experiment.phantom.rotation_sd_degrees, 0),
            "phantom.translation_sd_mm": (experiment.phantom.translation_sd_mm, 0),
        }
    for name, (value, least) in at_least.items():
        if not (math.isfinite(value) and value >= least):
            raise InputError(f"config.{name}", f"{value} is not a number of at least {least}")
    choices = {
        "data.frame": (data.frame, ("", "LPS", "RAS")),
        "data.unpaired_align": (data.unpaired_align, ("none", "rigid", "similarity")),
        "data.register": (data.register, ("none", "center", "rigid", "similarity", "affine")),
        "data.metric": (data.metric, ("correlation", "mutual_information")),
        "data.intensity": (data.intensity, ("percentiles", "window")),
        "predict.decoder": (experiment.predict.decoder, ("argmax", "subvoxel")),
        "predict.checkpoint": (experiment.predict.checkpoint, ("best", "last")),
        "predict.split": (experiment.predict.split, ("", "train", "val", "test")),
    }
    if experiment.phantom is not None:
        choices["phantom.modality"] = (experiment.phantom.modality, ("MRA", "CTA"))
        _triple("phantom.spacing_mm", experiment.phantom.spacing_mm, (int, float))
        _triple("phantom.shape", experiment.phantom.shape, (int,))
    for name, (choice, allowed) in choices.items():
        if choice not in allowed:
            raise InputError(f"config.{name}", f"{choice!r} is not one of {allowed}")
    _triple("data.spacing_mm", data.spacing_mm, (int, float))
    _triple("data.crop", data.crop, (int,))
    low, high = data.intensity_percentiles
    if not 0 <= low < high <= 100:
        raise InputError("config.data.intensity_percentiles", f"{low}, {high} is not a rising pair")
    low, high = data.intensity_window
    if not -math.inf < low < high < math.inf:
        raise InputError("config.data.intensity_window", f"{low}, {high} is not a rising pair")
    if bool(data.template_mask) != bool(data.shared_mask):
        missing = "shared_mask" if data.template_mask else "template_mask"
        raise InputError(f"config.data.{missing}", "is needed too: two masks are aligned")
    if data.template_transform and data.template_mask:
        raise InputError("config.data.template_transform", "and masks both align the template")
    if data.register == "none" and (data.template_transform or data.template_mask):
        raise InputError("config.data.register", "is none: there is no template to align")
    if data.val_fraction + data.test_fraction >= 1:
        raise InputError("config.data.val_fraction", "with test_fraction leaves no training cases")
    if not 0 < experiment.predict.coverage < 1:
        raise InputError(
            "config.predict.coverage", f"{experiment.predict.coverage} is not between 0 and 1"
        )
    if not 0 < data.train_fraction <= 1:
        raise InputError(
            "config.data.train_fraction", f"{data.train_fraction} is not above 0 and at most 1"
        )
    if augment.translation_voxels > data.margin:
        raise InputError(
            "config.augment.translation_voxels",
            f"{augment.translation_voxels} is more than config.data.margin, {data.margin}",
        )
    if augment.scale >= 1 or augment.contrast >= 1:
        raise InputError("config.augment", "scale and contrast must be under 1")
    return experiment


def _triple(name: str, value: tuple[float, ...], types: tuple[type, ...]) -> None:
    if len(value) != 3 or not all(isinstance(v, types) and v > 0 for v in value):
        kind = "whole numbers" if types == (int,) else "numbers"
        raise InputError(f"config.{name}", f"{value} is not three positive {kind} (X, Y, Z)")
