"""What an experiment is: typed dataclasses, with every default in one place.

An experiment file has a function `get_config(preset) -> Experiment`. On the command line every
field can be set (`--config.train.batch=4`); an unknown one or a wrong type is refused.
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
    """Where scans and landmarks come from and how they are made into cases of one shape.

    Lengths are millimetres, shapes are voxels in (X, Y, Z) order.
    """

    # A folder with `images/` and `landmarks/` (or `landmarks.csv`), or in the layout of nnU-Net or
    # BIDS; empty: the phantom, if any.
    root: str = ""
    # Which image of a case, where it has several: the last part of its name (BIDS "angio", nnU-Net
    # "0000").
    suffix: str = ""
    # Which DICOM series of a case whose folder holds several volumes: its description, number, UID
    # or the end of the UID. Empty: each folder must hold one volume. Of folders of new scans those
    # series alone are predicted; empty: all.
    series: str = ""
    # Frame of landmark files that don't state theirs: "LPS", "RAS" or "" (then they must).
    frame: str = setting("", one_of("", "LPS", "RAS"))
    # Unit of landmark files that state neither frame nor unit: "mm", or "voxels": indices of the
    # case's own image, counted from 0, x fastest; of a picture, pixels.
    units: str = setting("mm", one_of("mm", "voxels"))
    # Landmarks of another cohort, for methods that learn from them: a table (CSV), or a folder of
    # landmark files. Empty: `unpaired.csv` in `root`, if it is there.
    unpaired: str = ""
    # How they come into the prepared volumes: "none" (their frame is the common one already), or a
    # "rigid" or "similarity" fit of each set to the landmarks of a training case.
    unpaired_align: str = setting("none", one_of("none", "rigid", "similarity"))
    # Landmark names in order, all or some of those in the files; empty: taken from the files, which
    # must then all have the same ones.
    landmarks: tuple[str, ...] = ()
    # Segment names in order, all or some of those in the label table: the classes of methods that
    # learn from label maps; others are background. Empty: all.
    segments: tuple[str, ...] = ()
    # Used where the folder has no `splits.json`, and without `folds`.
    val_fraction: float = setting(0.15, at_least(0))
    test_fraction: float = setting(0.15, at_least(0))
    split_seed: int = 0
    # Cross-validation: the cases that are not kept for testing are divided into so many folds by
    # patient (see `data.folds`), of which number `fold`, from 0, is for validation; 0: no folds.
    folds: int = setting(0, at_least(0))
    fold: int = setting(0, at_least(0))
    # Share of the training split that is used, for learning curves: less is a subset of more.
    train_fraction: float = 1.0
    # How scans are brought together: "none" (world frames agree already), "middle" (the scans'
    # middles, for methods that find out the rest themselves), "center" (centres of mass), "rigid",
    # "similarity" or "affine" (intensity registration to `template`).
    register: str = setting(
        "none", one_of("none", "middle", "center", "rigid", "similarity", "affine")
    )
    # What is compared: "correlation" (scans that look alike), "mutual_information" (Mattes'; heads,
    # whose contrast differs from scanner to scanner).
    metric: str = setting("correlation", one_of("correlation", "mutual_information"))
    # How far a scan may be turned from the template: 180 is anywhere, 30 suits headers that agree.
    search_degrees: float = setting(180.0, at_least(0))
    # A training case or a scan file, to which all are registered; empty: the most typical case.
    template: str = ""
    # Where the template lies in a frame that several modalities share (that of the other modality's
    # template): a transform file of ITK (fixed: the shared frame, moving: the template), ...
    template_transform: str = ""
    # ... or masks of one structure of one person, in the template's frame and in the shared one.
    template_mask: str = ""
    shared_mask: str = ""
    # Where the crop has one voxel along Z, cases are pictures: PNG, JPEG, TIFF, BMP, DICOM, or a
    # slice in NIfTI. Lengths of pictures, here and in all that is printed, are "mm", or "px" where
    # the size of a pixel is not known or does not matter: then all "millimetres" are pixels.
    unit: str = setting("mm", one_of("mm", "px"))
    # Of all pictures that do not state the size of a pixel, and whose landmark table has no column
    # pixel_size_mm; 0: not known. Resolutions in PNG, JPEG and TIFF are a print's, and not read.
    pixel_size_mm: float = setting(0.0, at_least(0))
    # "common": all cases are resampled to `spacing_mm`. "native" (pictures): nothing is resampled;
    # the crop is about each picture's middle, and what lies outside of it is filled up. Lengths of
    # the method are pixels then, and `spacing_mm` is 1.
    grid: str = setting("common", one_of("common", "native"))
    spacing_mm: tuple[float, float, float] = setting((0.513, 0.513, 0.8), LENGTHS)
    crop: tuple[int, int, int] = setting((192, 160, 96), VOXELS)
    # Voxels kept around the crop on each side, so that augmentation moves over real voxels; none
    # along an axis on which the crop is one voxel: that is a picture.
    margin: int = setting(8, at_least(0))
    # What becomes 0 and 1: "percentiles" of the voxels around the crop (MRA, whose units mean
    # nothing), or a fixed "window" with all beyond cut off (CTA, in Hounsfield units).
    intensity: str = setting("percentiles", one_of("percentiles", "window"))
    intensity_percentiles: tuple[float, float] = (0.5, 99.5)
    intensity_window: tuple[float, float] = (0.0, 700.0)
    # Folder of prepared cases; empty: `jaxmark` in the user's cache folder.
    cache: str = ""
    # Processes that prepare; 0: one a CPU core.
    workers: int = setting(0, at_least(0))
    # Draw contact sheets of all cases, also of more than 200; else of so many, doubtful ones first.
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

    Shares are of the cases, strengths are the largest that is drawn; 0 is off.
    """

    # A batch's image is the share of each voxel that lies in arteries, and its targets hold
    # `tissues`; what the network sees is drawn from both. Off: the image is what the batch holds.
    drawn: bool = False
    # What the intensities are like: a time-of-flight MRA's, or a CTA's. The rest: any for each
    # tissue, and arteries brighter than the brain.
    mra: float = setting(0.4, SHARE)
    cta: float = setting(0.3, SHARE)
    # Share of that rest whose arteries are darker than the brain: black-blood images.
    dark: float = setting(0.03, SHARE)
    # Of CTA whose values are cut off at a window such as 0 to 700 HU.
    windowed: float = setting(0.5, SHARE)
    # Veins as bright as arteries.
    venous: float = setting(0.15, SHARE)
    # Contrast of arteries that is lost, as a share of it: in places, and in the thinnest ones.
    fade: float = setting(0.6, SHARE)
    thin: float = setting(0.7, SHARE)
    # Arteries that fade along z, as blood that is saturated on its way through a slab, or several.
    saturated: float = setting(0.3, SHARE)
    # Standard deviation within a tissue of what varies over 2 to 30 mm, relative to its value.
    texture: float = setting(0.12, at_least(0))
    # Standard deviation of a coil's sensitivity, as a logarithm; not of CTA.
    bias: float = setting(0.2, at_least(0))
    # The scanner's voxels, along x and y and along z. Where the grid is coarser nothing is blurred.
    voxel_mm: tuple[float, float] = (0.3, 1.0)
    slice_mm: tuple[float, float] = (0.3, 1.5)
    # Standard deviation relative to a brain in MRA, to 200 HU in CTA.
    noise: float = setting(0.15, at_least(0))
    # Images with ringing at edges (a sharp end of k-space), or with edges enhanced.
    ringing: float = setting(0.1, SHARE)
    sharpened: float = setting(0.2, SHARE)
    # Faint copies along y: ghosts of a head that moved, and what was folded over; not of CTA.
    motion: float = setting(0.1, SHARE)
    wrapped: float = setting(0.03, SHARE)
    # What others made of the scan: the brain and its vessels alone, ...
    stripped: float = setting(0.12, SHARE)
    # ... all under a threshold between brain and arteries set to nothing, ...
    thresholded: float = setting(0.08, SHARE)
    # ... or the arteries alone.
    vessels_only: float = setting(0.05, SHARE)
    # Field of view: slabs across z, or boxes around the landmarks; the rest: all of the crop.
    slab: float = setting(0.25, SHARE)
    slab_mm: tuple[float, float] = (20.0, 100.0)
    box: float = setting(0.3, SHARE)
    # The smallest; the largest is half as long again, each side by itself.
    box_mm: tuple[float, float, float] = setting((40.0, 37.0, 20.0), LENGTHS)
    # How far a slab or box lies beside the landmarks' middle, as a share of its sides, ...
    shift: float = setting(0.3, SHARE)
    # ... and how far it is turned.
    tilt_degrees: float = setting(15.0, at_least(0))
    # Share of fields of view that are surrounded by the scan's minimum; others by 0.
    minimum_around: float = setting(0.3, SHARE)
    # Landmarks outside of the field of view are neither present nor absent: nothing is learned of
    # them. If not, they stay what they are.
    hide_unseen: bool = True
    # Images that a model has no business with: a head upside down or back to front, one without
    # arteries, noise. Their landmarks are absent, whatever lies there.
    strangers: float = setting(0.0, SHARE)
    # Images whose upper 0.5 to 3 % are cut off.
    clipped: float = setting(0.2, SHARE)
    # Exponents of the scaled image between exp(-gamma) and exp(gamma), and then a relative factor.
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

    # At most the margin of the prepared cases.
    translation_voxels: int = setting(4, at_least(0))
    rotation_degrees: float = setting(0.0, at_least(0))
    # Relative: 0.1 is a factor between 0.9 and 1.1.
    scale: float = setting(0.0, at_least(0))
    # Relative contrast and additive brightness on intensities that lie in about [0, 1].
    contrast: float = setting(0.0, at_least(0))
    brightness: float = setting(0.0, at_least(0))
    # Standard deviation of added Gaussian noise.
    noise: float = setting(0.0, at_least(0))
    # Share of the cases that are mirrored left to right, with what is right and left exchanged.
    flip: float = setting(0.0, at_least(0), SHARE)
    # Smooth random deformation: a cubic B-spline whose coefficients lie `elastic_grid_mm` apart and
    # move voxels by at most `elastic_mm` along each axis.
    elastic_mm: float = setting(0.0, at_least(0))
    elastic_grid_mm: float = setting(48.0, POSITIVE)
    # Images from label maps; contrast, brightness and noise above are then its own.
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
    """The loop: how many, how often, and what is kept."""

    batch: int = setting(1, at_least(1))
    # Steps between lines of the log.
    log_every: int = setting(10, at_least(1))
    # Steps between validations, each followed by a checkpoint.
    validate_every: int = setting(200, at_least(1))
    keep_checkpoints: int = setting(2, at_least(1))
    # Threads that read cases and batches kept ready ahead of the step.
    loader_threads: int = setting(4, at_least(1))
    prefetch: int = setting(4, at_least(1))
    tensorboard: bool = False


@dataclasses.dataclass
class Stream:
    """Training on label maps of synthetic people that are drawn without end; see `data.stream`.

    Validation and test are prepared cases as ever, and so is what the training split's are for
    beside training: the common frame.
    """

    # Of `config.phantom`, which says what people are like. Processes draw them: `data.workers`.
    on: bool = False
    # How often each person is seen; the more often, the less is drawn.
    reuse: int = setting(4, at_least(1))
    # People that come newly into each block of `window * reuse` that are shuffled.
    window: int = setting(8, at_least(1))


@dataclasses.dataclass
class Predict:
    """How a trained model is used."""

    # One of the method's ways to a position: "subvoxel" or "argmax" (the papers').
    decoder: str = "subvoxel"
    # Share of landmarks that are to lie within the radius that is stated for each.
    coverage: float = setting(0.9, between(0, 1))
    batch: int = setting(1, at_least(1))
    # Which split is predicted and evaluated; empty: test, or val where there is no test split.
    split: str = setting("", one_of("", "train", "val", "test"))
    # "best" on validation, or "last".
    checkpoint: str = setting("best", one_of("best", "last"))
    # Draw each raw scan with its landmarks; it takes about as long as a registration.
    pictures: bool = True
    # What computes networks: "xla"; on a CPU with `pip install openvino` also "openvino",
    # "openvino_bf16" (products of 16 bits), or "fastest": of the first two, by timing both.
    engine: str = setting("xla", one_of("xla", "openvino", "openvino_bf16", "fastest"))


@dataclasses.dataclass
class Evaluate:
    """What is reported."""

    sdr_thresholds_mm: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    # Of pictures, whose errors are given in both units where both are known.
    sdr_thresholds_px: tuple[float, ...] = (2.0, 3.0, 5.0)
    # The report holds the voxels of the scans that it shows, and a viewer for them. Without, it is
    # some megabytes smaller and has pictures of them. Pictures (Z = 1) need no viewer.
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
    # The synthetic cohort where `data.root` is empty. None: the experiment needs data of its own.
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
    """The experiment itself; InputError that names the first field with an impossible value."""
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
    # Through JSON once: tuples become lists, as in what is read back.
    return json.loads(json.dumps(tree, allow_nan=False))


def from_json(tree: Mapping[str, Any], kinds: Mapping[str, type], where: Path) -> Experiment:
    """The experiment that `to_json` described, or did in an earlier version.

    Args:
      kinds: the settings classes of methods and phantoms by name.

    Raises:
      InputError: about the file `where`, if it is not the config of a run, or names a class or a
        field that is not known.
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
    """A dataclass of JSON types; no field of a config is a list, but many are tuples."""
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
    """The config that an earlier version stored, as this version would have.

    What a field that is missing there stands for is its default: so a new field's default must be
    what was done before there was the field. What was renamed since is renamed here. A field whose
    meaning changes gets another name, and its old one is translated here or refused as unknown.
    """
    # Parts that are younger than the file.
    tree = {"stream": {}, **tree}
    if isinstance(tree.get("phantom"), dict):
        # The first phantom was the only one.
        tree["phantom"] = {"class": "CirclePhantom", **tree["phantom"]}
    return tree


# Parts of a config that a trained model belongs to; how it is logged or predicted may change.
_BINDING = ("method", "data", "phantom", "augment", "stream", "seed")
# Fields of parts that may differ by what they say. Where files lie is one of them: what is in the
# files is compared, see `moved`.
_PATHS = ("root", "unpaired", "template", "template_transform", "template_mask", "shared_mask")
_FREE: dict[str, tuple[str, ...]] = {
    "data": ("cache", "workers", "all_sheets", *_PATHS),
    # As `train.batch`: a run that has too little memory goes on with fewer.
    "method": ("refine_batch", "fine_batch"),
}


def check_same(
    found: Mapping[str, Any], experiment: Experiment, where: Path, parts: Sequence[str] = _BINDING
) -> None:
    """InputError where `found`, the config of an earlier run, is of another model or data."""
    found, wanted = migrated(found), to_json(experiment)
    differing = []
    for part in parts:
        if part not in found:
            raise InputError(where, f"is not the config of a run: it lacks {part!r}")
        old, new, path = found[part], wanted[part], f"config.{part}"
        if isinstance(old, dict) and isinstance(new, dict):
            old = _completed(old, _defaults(getattr(experiment, part)))
            free = _FREE.get(part, ())
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
    """A dataclass as JSON types, with the default of what it lacks, also in dataclasses in it."""
    completed = {**defaults, **tree}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(completed[name], dict):
            completed[name] = _completed(completed[name], default)
    return completed


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of the fields that differ, also of those in dataclasses in it."""
    for name in {**new, **old}:
        one, other = old.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from ((f"{name}.{deep}", *values) for deep, *values in _differences(one, other))
        elif one != other:
            yield name, one, other


def moved(found: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """The paths to data that are others than in `found`, the config of an earlier run.

    As texts: the same data may lie there, which only they themselves tell.
    """
    old = {**_defaults(experiment.data), **migrated(found)["data"]}
    new = to_json(experiment)["data"]
    return [
        f"config.data.{name} = {old[name]!r}, not {new[name]!r}"
        for name in _PATHS
        if old[name] != new[name]
    ]


def _defaults(settings: Any) -> dict[str, Any]:
    """What the fields of a dataclass are where nothing is said of them, as JSON types."""
    plain = {}
    for field in dataclasses.fields(settings):
        if field.default is not dataclasses.MISSING:
            plain[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            plain[field.name] = dataclasses.asdict(field.default_factory())
    return json.loads(json.dumps(plain))


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Experiment files that people wrote import it from here, its place when it was the only
        # phantom.
        if name == "Phantom":
            from jaxmark.data.phantoms.cow.cohort import CirclePhantom

            return CirclePhantom
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
