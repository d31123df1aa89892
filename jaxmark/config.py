"""What an experiment is: typed dataclasses, with every default in one place.

An experiment file has a function `get_config(preset) -> Experiment`. On the command line every field
can be set (`--config.train.batch=4`); an unknown field or a value of the wrong type is refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class Data:
    """Where scans and landmarks come from and how they are made into cases of one shape.

    Lengths are millimetres, shapes are voxels in (X, Y, Z) order.
    """

    # A folder with `images/` and `landmarks/` (or `landmarks.csv`); empty: the experiment's phantom.
    root: str = ""
    # Coordinate frame of landmark files that don't state theirs: "LPS", "RAS" or "" (then they must).
    frame: str = ""
    # Landmark names in order; empty: taken from the files, which must then all have the same ones.
    landmarks: tuple[str, ...] = ()
    # Used where the folder has no `splits.json`.
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0
    # How scans are brought together: "none" (world frames agree already), "center" (centres of mass),
    # "rigid", "similarity" or "affine" (intensity registration to `template`).
    register: str = "none"
    # Name of the training case that the others are registered to; empty: the most typical one.
    template: str = ""
    spacing_mm: tuple[float, float, float] = (0.513, 0.513, 0.8)
    crop: tuple[int, int, int] = (192, 160, 96)
    # Voxels kept around the crop on each side, so that augmentation moves over real voxels.
    margin: int = 8
    # Intensities are mapped so that these percentiles of the scan become 0 and 1.
    intensity_percentiles: tuple[float, float] = (0.5, 99.5)
    # Folder of prepared cases; empty: `jaxmark` in the user's cache folder.
    cache: str = ""
    # Processes that prepare; 0: one a CPU core.
    workers: int = 0


@dataclasses.dataclass
class Phantom:
    """The synthetic cohort used where `data.root` is empty."""

    train: int = 24
    val: int = 6
    test: int = 8
    seed: int = 0


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
    # Steps between lines of the log, validations, and checkpoints.
    log_every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    # Threads that read cases and batches kept ready ahead of the step.
    loader_threads: int = 4
    prefetch: int = 4
    tensorboard: bool = False


@dataclasses.dataclass
class Predict:
    """How heatmaps become positions: "argmax" (the papers') or "subvoxel"."""

    decoder: str = "subvoxel"
    batch: int = 1
    # Which split is predicted and evaluated.
    split: str = "test"


@dataclasses.dataclass
class Evaluate:
    """What is reported."""

    sdr_thresholds_mm: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)


@dataclasses.dataclass
class Experiment:
    """One experiment, whole. `method` is the settings dataclass of a module in `jaxmark.methods`."""

    method: Any
    name: str = "experiment"
    seed: int = 0
    data: Data = dataclasses.field(default_factory=Data)
    phantom: Phantom = dataclasses.field(default_factory=Phantom)
    augment: Augment = dataclasses.field(default_factory=Augment)
    train: Train = dataclasses.field(default_factory=Train)
    predict: Predict = dataclasses.field(default_factory=Predict)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)


def to_json(experiment: Experiment) -> Mapping[str, Any]:
    """The whole resolved config as JSON types; `method` also carries its class name."""
    tree = dataclasses.asdict(experiment)
    tree["method"] = {"class": type(experiment.method).__name__, **tree["method"]}
    return tree
