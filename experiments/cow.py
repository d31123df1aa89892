"""Circle-of-Willis landmarks in MRA: 19 bifurcations of look-alike arteries.

python -m jaxmark.main --config=experiments/cow.py

Without your own data this makes a synthetic cohort (`jaxmark/data/phantoms/cow`). Without a preset
the device decides: `paper` on an accelerator, `small` on a CPU.

- `paper`: 70 training and 32 test scans of 192 x 160 x 96 voxels at 0.513 x 0.513 x 0.8 mm, and 500
  landmark sets of another cohort, as in Tan et al. (ISBI 2023); 10 more scans for validation, which
  the paper does not have. Networks, losses and Adam at 1e-4 are those of "D-MRA-CTA-dagger" in its
  table, whose other rows are in `cow_table1.py`. Not run yet: it needs a GPU.
- `reverse`: the paper's closing question, the same on CTA scans with landmarks of an MRA cohort.
- `small`: coarser voxels, fewer scans, a cross-entropy in place of the paper's loss. Four minutes
  on a 2-core CPU; expect 2.1 mm on the test cases, where the mean position is 5.6 mm off.
- `small_adversarial`: the same voxels, the paper's loss, and a discriminator on cells. Ten minutes
  on one core; expect 2.5 mm where without the discriminator it is 5.3 mm. `small_reverse`: on CTA.
- `tiny`: for tests; it shows that everything runs, not that anything is learned.

Your own scans: --config.data.root=FOLDER --config.data.register=rigid
"""

import dataclasses
from typing import Any

from jaxmark.config import Augment, Data, Evaluate, Experiment, Train
from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.heatmap import HeatmapRegression

# Settings of a discriminator on cells, and of one on heatmaps with a stabiliser, tuned on the small
# scans' validation cases.
CELLS: dict[str, Any] = {
    "shown": "cells",
    "lambda_adv": 1e-2,
    "real_sets": 4,
    "r1": 1.0,
    "rate_ratio": 1.0,
    "discriminator_beta1": 0.5,
    "discriminator_widths": (64, 64, 64),
    "discriminator_hidden": 128,
}
HEATMAPS: dict[str, Any] = {
    "shown": "heatmaps",
    "lambda_adv": 1e-3,
    "real_sets": 1,
    "r1": 1.0,
    "rate_ratio": 0.2,
    "discriminator_beta1": 0.9,
    "discriminator_widths": (32, 64, 64),
    "discriminator_hidden": 64,
}


def default_preset(platform: str) -> str:
    """The preset if none is named; `platform` is JAX's: "cpu", "gpu" or "tpu"."""
    return "small" if platform == "cpu" else "paper"


def get_config(preset: str = "paper") -> Experiment:
    """See above; ValueError for a preset that does not exist."""
    presets = {
        "paper": paper,
        "reverse": reverse,
        "small": small,
        "small_adversarial": small_adversarial,
        "small_reverse": small_reverse,
        "tiny": tiny,
    }
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}, but {', '.join(presets)}")
    return presets[preset]()


def paper() -> Experiment:
    """The size and settings of the paper."""
    return Experiment(
        name="cow",
        data=Data(spacing_mm=(0.513, 0.513, 0.8), crop=(192, 160, 96), margin=8),
        phantom=CirclePhantom(train=70, val=10, test=32, unpaired=500),
        method=Adversarial(steps=20_000, adversarial_steps=20_000),
        augment=Augment(translation_voxels=8),
        train=Train(batch=1, validate_every=500),
        evaluate=Evaluate(sdr_thresholds_mm=(2.0, 3.0, 4.0, 5.0, 6.0)),
    )


def reverse() -> Experiment:
    """The paper's size with the modalities exchanged."""
    return on_cta(paper())


def on_cta(experiment: Experiment) -> Experiment:
    """The same on CTA scans; the landmarks without scans are then those of an MRA cohort."""
    assert experiment.phantom is not None
    experiment.name += "_reverse"
    experiment.phantom.modality = "CTA"
    # Hounsfield units mean the same in every scan; beyond the window is bone.
    experiment.data.intensity = "window"
    experiment.data.intensity_window = (0.0, 700.0)
    return experiment


def small() -> Experiment:
    """Under five minutes on a 2-core CPU."""
    spacing_mm = (1.6, 1.6, 2.0)
    return Experiment(
        name="cow_small",
        data=Data(spacing_mm=spacing_mm, crop=(56, 48, 40), margin=4),
        phantom=CirclePhantom(
            train=40, val=30, test=16, spacing_mm=spacing_mm, shape=(64, 56, 48), unpaired=500
        ),
        method=HeatmapRegression(
            steps=600,
            widths=(16, 32, 64),
            coordinates=True,
            loss="cross_entropy",
            sigma_mm=2.0,
            learning_rate=1e-3,
            decay=0.5,
        ),
        augment=Augment(translation_voxels=4, rotation_degrees=5, scale=0.05),
        train=Train(batch=2, log_every=20, validate_every=100),
        evaluate=Evaluate(sdr_thresholds_mm=(2.0, 3.0, 4.0, 5.0, 6.0)),
    )


def small_adversarial() -> Experiment:
    """The small scans with the paper's generator and loss, and a discriminator on cells."""
    experiment = small()
    experiment.name = "cow_small_adversarial"
    assert experiment.phantom is not None
    experiment.phantom = dataclasses.replace(experiment.phantom, test=32)
    experiment.method = Adversarial(
        steps=400,
        adversarial_steps=300,
        widths=(16, 32, 64),
        sigma_mm=2.0,
        learning_rate=1e-3,
        # All of the adversarial phase.
        decay=300 / 700,
        **CELLS,
    )
    return experiment


def small_reverse() -> Experiment:
    """The same with the modalities exchanged."""
    return on_cta(small_adversarial())


def tiny() -> Experiment:
    """Seconds."""
    spacing_mm = (3.0, 3.0, 3.0)
    experiment = small()
    experiment.name = "cow_tiny"
    experiment.data = Data(spacing_mm=spacing_mm, crop=(32, 32, 24), margin=2)
    experiment.phantom = CirclePhantom(
        train=3, val=1, test=2, spacing_mm=spacing_mm, shape=(36, 36, 28), unpaired=4
    )
    experiment.method.steps = 6
    experiment.method.widths = (4, 8)
    experiment.augment = Augment(translation_voxels=2, rotation_degrees=5)
    experiment.train = Train(batch=1, log_every=2, validate_every=3)
    return experiment
