"""The settings of an experiment: typed dataclasses, with every default in one place.

An experiment file has a function `get_config(preset) -> Experiment`. The command line can set every
field (`--config.train.batch=4`); it refuses unknown fields and wrong types.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmark.bounds import (
    LENGTHS,
    POSITIVE,
    SHARE,
    VOXELS,
    Problem,
    at_least,
    between,
    check,
    one_of,
    setting,
)
from jaxmark.system.errors import InputError


@dataclasses.dataclass
class Data:
    """Where scans and landmarks come from, and how cases of one shape are made from them.

    Lengths are millimetres, shapes are voxels in (X, Y, Z) order.
    """

    # A folder with `images/` and `landmarks/` (or `landmarks.csv`), or in the layout of nnU-Net or
    # BIDS. Empty: `config.phantom`, if the experiment has one.
    root: str = ""
    # Which image is used, where a case has several: the last part of its name (BIDS "angio",
    # nnU-Net "0000").
    suffix: str = ""
    # Which DICOM series is used, where a case's folder holds several: its description, number, UID
    # or the end of the UID. Empty: each case's folder must hold one volume. In folders of new
    # scans only this series is predicted; empty: all.
    series: str = ""
    # Frame of landmark files that state none: "LPS" or "RAS". "": every file must state its frame.
    frame: str = setting("", one_of("", "LPS", "RAS"))
    # Unit of landmark files that state neither frame nor unit: "mm", or "voxels": indices in the
    # case's image, counted from 0, x fastest; pixels in a picture.
    units: str = setting("mm", one_of("mm", "voxels"))
    # Landmarks of another cohort, for methods that learn from them: a table (CSV), or a folder of
    # landmark files. Empty: `unpaired.csv` in `root`, if it is there.
    unpaired: str = ""
    # How these landmarks are moved into the prepared volumes: "none" (they are in the common frame
    # already), or a "rigid" or "similarity" fit of each set to a training case's landmarks.
    unpaired_align: str = setting("none", one_of("none", "rigid", "similarity"))
    # Landmark names in order, all or some of those in the files. Empty: the names in the files,
    # which must then be the same in all.
    landmarks: tuple[str, ...] = ()
    # Segment names in order, all or some of those in the label table: the classes of methods that
    # learn from label maps. Other segments are background. Empty: all.
    segments: tuple[str, ...] = ()
    # Shares of the cases, where the folder has no `splits.json` and `folds` is 0.
    val_fraction: float = setting(0.15, at_least(0))
    test_fraction: float = setting(0.15, at_least(0))
    split_seed: int = 0
    # Cross-validation: the number of folds into which all but the test cases are divided, by
    # patient (see `data.folds`); 0: none. Fold number `fold`, from 0, is for validation.
    folds: int = setting(0, at_least(0))
    fold: int = setting(0, at_least(0))
    # Share of the training split that is used, for learning curves. A smaller share is a subset of
    # a larger one.
    train_fraction: float = 1.0
    # How scans are brought into one frame: "none" (their world frames agree already), "middle" (by
    # the scans' middles, for methods that find the rest themselves), "center" (by centres of mass),
    # "rigid", "similarity" or "affine" (intensity registration to `template`).
    register: str = setting(
        "none", one_of("none", "middle", "center", "rigid", "similarity", "affine")
    )
    # What registration maximises: "correlation" (for scans that look alike) or
    # "mutual_information" (Mattes'; for heads, whose contrast differs between scanners).
    metric: str = setting("correlation", one_of("correlation", "mutual_information"))
    # How far a scan may be turned from the template: 180 is any way, 30 suits headers that agree.
    search_degrees: float = setting(180.0, at_least(0))
    # The training case or scan file that all scans are registered to; empty: the most typical case.
    template: str = ""
    # Where the template lies in a frame that several modalities share (the frame of the other
    # modality's template): an ITK transform file (fixed: shared frame, moving: template), ...
    template_transform: str = ""
    # ... or two masks of one structure of one person: in the template's and in the shared frame.
    template_mask: str = ""
    shared_mask: str = ""
    # A crop with one voxel along Z means that cases are pictures: PNG, JPEG, TIFF, BMP, DICOM, or a
    # slice in NIfTI. Their lengths, in the config and in all output, are "mm", or "px" where the
    # size of a pixel is unknown or does not matter: then every field in "mm" is in pixels.
    unit: str = setting("mm", one_of("mm", "px"))
    # Size of a pixel, for pictures that do not state it and whose landmark table has no column
    # pixel_size_mm; 0: unknown. Resolutions in PNG, JPEG and TIFF are for printing: not read.
    pixel_size_mm: float = setting(0.0, at_least(0))
    # "common": all cases are resampled to `spacing_mm`. "native" (pictures only): nothing is
    # resampled. The crop lies about each picture's middle; voxels beyond the picture are filled.
    # The method's lengths are pixels then, and `spacing_mm` is 1.
    grid: str = setting("common", one_of("common", "native"))
    spacing_mm: tuple[float, float, float] = setting((0.513, 0.513, 0.8), LENGTHS)
    crop: tuple[int, int, int] = setting((192, 160, 96), VOXELS)
    # Voxels kept around the crop on each side, so that augmentation moves over real voxels. There
    # is no margin along an axis where the crop is one voxel, as in pictures.
    margin: int = setting(8, at_least(0))
    # Which intensities become 0 and 1: "percentiles" of the voxels around the crop (MRA, whose
    # units mean nothing), or a fixed "window" that cuts off all beyond (CTA, Hounsfield units).
    intensity: str = setting("percentiles", one_of("percentiles", "window"))
    intensity_percentiles: tuple[float, float] = (0.5, 99.5)
    intensity_window: tuple[float, float] = (0.0, 700.0)
    # Folder of prepared cases; empty: `jaxmark` in the user's cache folder.
    cache: str = ""
    # Processes that prepare cases; 0: one for each CPU core.
    workers: int = setting(0, at_least(0))
    # Draw contact sheets of all cases. Off: of at most 200, doubtful ones first.
    all_sheets: bool = False

    @property
    def planar(self) -> bool:
        """Whether cases are pictures."""
        return self.crop[2] == 1

    @property
    def margins(self) -> tuple[int, int, int]:
        """`margin` along each axis."""
        x, y, z = (self.margin if side > 1 else 0 for side in self.crop)
        return x, y, z

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        yield from self._picture_conflicts()
        low, high = self.intensity_percentiles
        if not 0 <= low < high <= 100:
            yield "intensity_percentiles", f"{low}, {high} is not a rising pair"
        low, high = self.intensity_window
        if not -math.inf < low < high < math.inf:
            yield "intensity_window", f"{low}, {high} is not a rising pair"
        if bool(self.template_mask) != bool(self.shared_mask):
            missing = "shared_mask" if self.template_mask else "template_mask"
            yield missing, "is needed too: two masks are aligned"
        if self.template_transform and self.template_mask:
            yield "template_transform", "and masks both align the template"
        if self.register in ("none", "middle") and (self.template_transform or self.template_mask):
            yield "register", f"is {self.register}: there is no template to align"
        if self.val_fraction + self.test_fraction >= 1:
            yield "val_fraction", "with test_fraction leaves no training cases"
        if self.folds == 1:
            yield "folds", "1 leaves no cases for training: 2 or more, or 0 for none"
        elif self.fold >= max(self.folds, 1):
            known = f"they are 0 to {self.folds - 1}" if self.folds else "config.data.folds is 0"
            yield "fold", f"there is no fold {self.fold}: {known}"
        if not 0 < self.train_fraction <= 1:
            yield "train_fraction", f"{self.train_fraction} is not above 0 and at most 1"

    def _picture_conflicts(self) -> Iterator[Problem]:
        for name, usual in (("unit", "mm"), ("pixel_size_mm", 0.0), ("grid", "common")):
            if not self.planar and getattr(self, name) != usual:
                problem = f"{getattr(self, name)} is for pictures, whose crop has Z = 1"
                yield name, f"{problem}; it is {self.crop}"
        if self.planar and self.register not in ("none", "center"):
            yield "register", f"{self.register} is for volumes; pictures know none and center"
        if self.planar and self.suffix:
            yield "suffix", "chooses among images of nnU-Net or BIDS; pictures lie in images/"
        if self.grid == "native" and self.register != "none":
            yield "register", f"{self.register} moves pictures, but grid is native: set it to none"
        if self.grid == "native" and any(length != 1 for length in self.spacing_mm):
            yield "spacing_mm", f"{self.spacing_mm} is not 1, 1, 1, but grid is native"


@dataclasses.dataclass
class Appearance:
    """Images drawn from label maps on the device, anew at every step; see `core.appearance`.

    Shares are shares of the cases. Strengths are the largest that is drawn. 0 is off.
    """

    # On: a batch's image holds the share of each voxel that lies in arteries, its targets hold
    # `tissues`, and the network's image is drawn from both. Off: the network sees the batch's.
    drawn: bool = False
    # Images with the intensities of a time-of-flight MRA, and of a CTA. All others have a random
    # value for each tissue, with arteries brighter than the brain.
    mra: float = setting(0.4, SHARE)
    cta: float = setting(0.3, SHARE)
    # Share of these others whose arteries are darker than the brain: black-blood images.
    dark: float = setting(0.03, SHARE)
    # Share of CTA whose values are cut off at a window such as 0 to 700 HU.
    windowed: float = setting(0.5, SHARE)
    # Images whose veins are as bright as arteries.
    venous: float = setting(0.15, SHARE)
    # Share of the arteries' contrast that is lost: in places, and in the thinnest arteries.
    fade: float = setting(0.6, SHARE)
    thin: float = setting(0.7, SHARE)
    # Images whose arteries fade along z: blood saturates on its way through a slab, or several.
    saturated: float = setting(0.3, SHARE)
    # Standard deviation of a tissue's texture (2 to 30 mm in size), relative to the tissue's value.
    texture: float = setting(0.12, at_least(0))
    # Standard deviation of the logarithm of a coil's sensitivity; not in CTA.
    bias: float = setting(0.2, at_least(0))
    # The scanner's voxels, along x and y, and along z. A coarser grid is not blurred.
    voxel_mm: tuple[float, float] = (0.3, 1.0)
    slice_mm: tuple[float, float] = (0.3, 1.5)
    # Standard deviation, relative to the brain's value in MRA, to 200 HU in CTA.
    noise: float = setting(0.15, at_least(0))
    # Images with ringing at edges (a sharp end of k-space), or with edges enhanced.
    ringing: float = setting(0.1, SHARE)
    sharpened: float = setting(0.2, SHARE)
    # Faint copies along y: ghosts of a head that moved, and aliasing (fold-over); not in CTA.
    motion: float = setting(0.1, SHARE)
    wrapped: float = setting(0.03, SHARE)
    # Scans that others have processed: only the brain and its vessels are left, ...
    stripped: float = setting(0.12, SHARE)
    # ... values under a threshold between brain and arteries are removed, ...
    thresholded: float = setting(0.08, SHARE)
    # ... or only the arteries are left.
    vessels_only: float = setting(0.05, SHARE)
    # Fields of view that are slabs across z, or boxes around the landmarks; all others: the crop.
    slab: float = setting(0.25, SHARE)
    slab_mm: tuple[float, float] = (20.0, 100.0)
    box: float = setting(0.3, SHARE)
    # The smallest box. The sides are drawn one by one, each up to 1.5 times as long.
    box_mm: tuple[float, float, float] = setting((40.0, 37.0, 20.0), LENGTHS)
    # How far a slab or box is moved from the landmarks' middle, as a share of its sides, ...
    shift: float = setting(0.3, SHARE)
    # ... and how far it is turned.
    tilt_degrees: float = setting(15.0, at_least(0))
    # Share of fields of view that are surrounded by the scan's minimum; others by 0.
    minimum_around: float = setting(0.3, SHARE)
    # On: landmarks outside of the field of view are neither present nor absent; training ignores
    # them. Off: they stay present or absent.
    hide_unseen: bool = True
    # Images that no model should accept: a head upside down or back to front, a head without
    # arteries, noise. All their landmarks count as absent.
    strangers: float = setting(0.0, SHARE)
    # Images whose upper 0.5 to 3 % are cut off.
    clipped: float = setting(0.2, SHARE)
    # The scaled image gets an exponent between exp(-gamma) and exp(gamma), then a factor between
    # 1 - contrast and 1 + contrast.
    gamma: float = setting(0.3, at_least(0))
    contrast: float = setting(0.1, SHARE)

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        for name in ("voxel_mm", "slice_mm", "slab_mm"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                yield name, f"{low}, {high} is not a rising pair of lengths"
        for first, second in (("mra", "cta"), ("slab", "box")):
            together = getattr(self, first) + getattr(self, second)
            if together > 1:
                yield second, f"and {first} are together {together:g}, more than all cases"


@dataclasses.dataclass
class Augment:
    """Random changes made on the device; all uniform in [-value, value], 0 is off."""

    # At most `config.data.margin`.
    translation_voxels: int = setting(4, at_least(0))
    rotation_degrees: float = setting(0.0, at_least(0))
    # Relative: 0.1 is a factor between 0.9 and 1.1.
    scale: float = setting(0.0, at_least(0))
    # Relative contrast and additive brightness on intensities that lie in about [0, 1].
    contrast: float = setting(0.0, at_least(0))
    brightness: float = setting(0.0, at_least(0))
    # Standard deviation of added Gaussian noise.
    noise: float = setting(0.0, at_least(0))
    # Share of the cases that are mirrored left to right, with right and left names exchanged.
    flip: float = setting(0.0, at_least(0), SHARE)
    # Smooth random deformation: a cubic B-spline whose coefficients lie `elastic_grid_mm` apart and
    # move voxels by at most `elastic_mm` along each axis.
    elastic_mm: float = setting(0.0, at_least(0))
    elastic_grid_mm: float = setting(48.0, POSITIVE)
    # Images drawn from label maps; then contrast, brightness and noise above must be 0.
    appearance: Appearance = dataclasses.field(default_factory=Appearance)

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        if self.scale >= 1 or self.contrast >= 1:
            yield "", "scale and contrast must be under 1"
        if self.elastic_mm > self.elastic_grid_mm / 8:
            # Beyond that, a bend may fold the picture, and points have no single place in it.
            problem = f"{self.elastic_mm} is more than an eighth of elastic_grid_mm"
            yield "elastic_mm", f"{problem}, {self.elastic_grid_mm}: the picture could fold"
        if self.appearance.drawn and (self.contrast or self.brightness or self.noise):
            problem = "draws contrast and noise itself: set contrast, brightness and noise to 0"
            yield "appearance.drawn", problem


@dataclasses.dataclass
class Train:
    """The training loop: batches, intervals, checkpoints, threads."""

    batch: int = setting(1, at_least(1))
    # Steps between lines of the log.
    log_every: int = setting(10, at_least(1))
    # Steps between validations, each followed by a checkpoint.
    validate_every: int = setting(200, at_least(1))
    keep_checkpoints: int = setting(2, at_least(1))
    # Threads that read cases, and batches that they keep ready ahead of the step.
    loader_threads: int = setting(4, at_least(1))
    prefetch: int = setting(4, at_least(1))
    tensorboard: bool = False


@dataclasses.dataclass
class Stream:
    """Training on label maps of synthetic people, drawn without end; see `data.stream`.

    Validation and test still use prepared cases. The prepared training split still defines the
    common frame.
    """

    # On: `data.workers` processes draw the people that `config.phantom` describes.
    on: bool = False
    # How often each person is seen in training.
    reuse: int = setting(4, at_least(1))
    # New people in each shuffled block of `window * reuse` cases.
    window: int = setting(8, at_least(1))


@dataclasses.dataclass
class Predict:
    """How a trained model is used."""

    # How the method reads a position: one of its `decoders`, "subvoxel" or "argmax" (the papers').
    decoder: str = "subvoxel"
    # Share of landmarks that should lie within the radius that is given with each prediction.
    coverage: float = setting(0.9, between(0, 1))
    batch: int = setting(1, at_least(1))
    # Which split is predicted and evaluated; empty: test, or val where there is no test split.
    split: str = setting("", one_of("", "train", "val", "test"))
    # The checkpoint that is "best" on validation, or the "last".
    checkpoint: str = setting("best", one_of("best", "last"))
    # Draw each raw scan with its landmarks; it takes about as long as a registration.
    pictures: bool = True
    # What computes networks: "xla"; on a CPU with `pip install openvino` also "openvino",
    # "openvino_bf16" (16-bit products), or "fastest": the faster of the first two, which it times.
    engine: str = setting("xla", one_of("xla", "openvino", "openvino_bf16", "fastest"))


@dataclasses.dataclass
class Evaluate:
    """Contents of the report."""

    sdr_thresholds_mm: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    # For pictures, whose errors are reported in both units where both are known.
    sdr_thresholds_px: tuple[float, ...] = (2.0, 3.0, 5.0)
    # On: the report holds a viewer and the voxels of the scans that it shows. Off: it holds images
    # of them, and is some megabytes smaller. Cases that are pictures need no viewer.
    viewer: bool = True


@dataclasses.dataclass
class Experiment:
    """One experiment.

    `method` is the settings dataclass of a module in `jaxmark.methods`, `phantom` that of a folder
    in `jaxmark.data.phantoms`.
    """

    method: Any
    name: str = "experiment"
    seed: int = 0
    data: Data = dataclasses.field(default_factory=Data)
    # The synthetic cohort, used where `data.root` is empty. None: `data.root` must be set.
    phantom: Any = None
    augment: Augment = dataclasses.field(default_factory=Augment)
    train: Train = dataclasses.field(default_factory=Train)
    stream: Stream = dataclasses.field(default_factory=Stream)
    predict: Predict = dataclasses.field(default_factory=Predict)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        moves, margin = self.augment.translation_voxels, self.data.margin
        if moves > margin:
            yield (
                "augment.translation_voxels",
                f"{moves} is more than config.data.margin, {margin}",
            )
        if self.stream.on and not hasattr(self.phantom, "drawing"):
            yield "stream.on", "needs config.phantom to be one that draws label maps"
        if self.stream.on and not self.augment.appearance.drawn:
            problem = "gives label maps, not images: set config.augment.appearance.drawn"
            yield "stream.on", problem
        if self.predict.decoder not in self.method.decoders:
            known = self.method.decoders
            yield "predict.decoder", f"{self.predict.decoder!r} is not one of {known}"


def validate(experiment: Experiment) -> Experiment:
    """Returns the experiment; raises InputError for the first field with an impossible value."""
    check(experiment, "config")
    return experiment


SCHEMA_VERSION = 1
_PARTS: dict[str, type] = {
    "data": Data,
    "augment": Augment,
    "train": Train,
    "stream": Stream,
    "predict": Predict,
    "evaluate": Evaluate,
}


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The whole resolved config as JSON types; `method` and `phantom` carry their class names."""
    tree = dataclasses.asdict(experiment)
    for part in ("method", "phantom"):
        if tree[part] is not None:
            kind = type(getattr(experiment, part)).__name__
            tree[part] = {"class": kind, **tree[part]}
    # Through JSON text, so that tuples are lists, as in a config read from a file.
    return json.loads(json.dumps(tree, allow_nan=False))


def from_json(tree: Mapping[str, Any], kinds: Mapping[str, type], where: Path) -> Experiment:
    """The experiment in what `to_json` returned, in this version or an earlier one.

    Args:
      kinds: the settings classes of methods and phantoms by name.
      where: the file, for messages.

    Raises:
      InputError: `where` is not the config of a run, or names an unknown class or field.
    """
    tree = migrated(tree)
    try:
        parts: dict[str, Any] = {}
        for name, value in tree.items():
            if name in ("method", "phantom") and value is not None:
                fields = dict(value)
                kind = fields.pop("class")
                if kind not in kinds:
                    problem = f"is of the {name} {kind!r}; --config has to name its file"
                    raise InputError(where, problem)
                parts[name] = _filled(kinds[kind], fields, name, where)
            elif name in _PARTS:
                parts[name] = _filled(_PARTS[name], value, name, where)
            elif name != "schema_version":
                parts[name] = value
        return Experiment(**parts)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(where, f"is not the config of a run ({error})") from error


def _filled(kind: type, tree: Mapping[str, Any], part: str, where: Path) -> Any:
    """The dataclass from JSON types. JSON lists become tuples: no field of a config is a list."""
    known: dict[str, Any] = {field.name: field for field in dataclasses.fields(kind)}
    for name in tree:
        if name not in known:
            raise InputError(where, f"has config.{part}.{name}, which this version does not know")

    def value(name: str, stored: Any) -> Any:
        if isinstance(stored, dict):
            return _filled(known[name].default_factory, stored, f"{part}.{name}", where)
        return tuple(stored) if isinstance(stored, list) else stored

    return kind(**{name: value(name, stored) for name, stored in tree.items()})


def migrated(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The config that an earlier version stored, as this version would store it.

    A missing field has its default: so a new field's default must be what earlier versions did.
    This function renames what was renamed since. A field whose meaning changes gets a new name; its
    old name is translated here or refused as unknown.
    """
    # Parts that the first version did not have.
    tree = {"stream": {}, **tree}
    if isinstance(tree.get("phantom"), dict):
        # The first version had one phantom and stored no class name.
        tree["phantom"] = {"class": "CirclePhantom", **tree["phantom"]}
    return tree


# Parts of a config that must not change once a model is trained; logging and prediction may.
_FIXED_PARTS = ("method", "data", "phantom", "augment", "stream", "seed")
# Paths may change, since files may be moved: what is in the files is compared instead, see `moved`.
_PATHS = ("root", "unpaired", "template", "template_transform", "template_mask", "shared_mask")
# Fields of these parts that may change all the same.
_FREE_FIELDS: dict[str, tuple[str, ...]] = {
    "data": ("cache", "workers", "all_sheets", *_PATHS),
    # As `train.batch`: a run that has too little memory goes on with fewer.
    "method": ("refine_batch", "fine_batch"),
}


def check_same(
    found: Mapping[str, Any],
    experiment: Experiment,
    where: Path,
    parts: Sequence[str] = _FIXED_PARTS,
) -> None:
    """Raises InputError where `found`, an earlier run's config, has another model or other data."""
    found, wanted = migrated(found), to_json(experiment)
    differing = []
    for part in parts:
        if part not in found:
            raise InputError(where, f"is not the config of a run: it lacks {part!r}")
        old, new, path = found[part], wanted[part], f"config.{part}"
        if isinstance(old, dict) and isinstance(new, dict):
            old = _completed(old, _defaults(getattr(experiment, part)))
            free = _FREE_FIELDS.get(part, ())
            differing += [
                f"{path}.{name} = {one}, not {other}"
                for name, one, other in _differences(old, new)
                if name not in free
            ]
        elif old != new:
            differing.append(f"{path} = {old}, not {new}")
    if differing:
        raise InputError(
            where, f"belongs to a run with {'; '.join(differing)}; use another --workdir"
        )


def _completed(tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`tree`, with the defaults of the fields that it lacks, at every depth."""
    completed = {**defaults, **tree}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(completed[name], dict):
            completed[name] = _completed(completed[name], default)
    return completed


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, old and new value of every field that differs, at every depth."""
    for name in {**new, **old}:
        one, other = old.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from ((f"{name}.{deep}", *values) for deep, *values in _differences(one, other))
        elif one != other:
            yield name, one, other


def moved(found: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """Messages about paths to data that differ from `found`, the config of an earlier run.

    Different paths may hold the same data: the caller compares the data.
    """
    old = {**_defaults(experiment.data), **migrated(found)["data"]}
    new = to_json(experiment)["data"]
    return [
        f"config.data.{name} = {old[name]!r}, not {new[name]!r}"
        for name in _PATHS
        if old[name] != new[name]
    ]


def _defaults(settings: Any) -> dict[str, Any]:
    """The defaults of a dataclass, as JSON types."""
    plain = {}
    for field in dataclasses.fields(settings):
        if field.default is not dataclasses.MISSING:
            plain[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            plain[field.name] = dataclasses.asdict(field.default_factory())
    return json.loads(json.dumps(plain))


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Users' experiment files import it from here: it was here when it was the only phantom.
        if name == "Phantom":
            from jaxmark.data.phantoms.cow.cohort import CirclePhantom

            return CirclePhantom
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
