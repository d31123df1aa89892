"""Landmarks at full resolution in CT angiograms: two stages (Tan et al., 2019).

python -m jaxmark.main --config=experiments/vessel_cascade.py
python -m jaxmark.main --config=experiments/vessel_cascade.py:aorta_small

Without your own data this makes a synthetic cohort (`jaxmark/data/phantoms/vessels`). Without a
preset the device decides: `paper` on an accelerator, `small` on a CPU. Presets for the heart, with
5 landmarks:

- `paper`: 75 training and 40 test volumes of 512^3 voxels of 0.4 mm; stage 1 on voxels four times
  as long, patches of 64 voxels, batch 4, Adam at 1e-3, 11,250 and 45,000 steps. It needs a GPU, and
  has not been run.
- `small`: voxels of 1.6 mm, and our losses; for a CPU. Its 76 phantoms take 4.7 minutes of CPU time
  to draw, the training 3 minutes; expect 1.7 mm (median 0.8); the first stage alone: 5.3 mm.
- `tiny`: for tests.

Presets for the aorta, with 9 landmarks and stage 1 on voxels twice as long: `aorta` (25 training
and 23 test volumes of 0.71 x 0.71 x 0.81 mm, for a GPU, not run), `aorta_small`, `aorta_tiny`.

Predictions also hold the first stage's positions: `landmarks_stage1.csv` (the voxel of the maximum)
and `landmarks_stage1_subvoxel.csv`; --config.predict.decoder= chooses which is evaluated.
"""

import dataclasses

from jaxmark.config import Augment, Data, Evaluate, Experiment, Train
from jaxmark.data.phantoms.vessels.aorta import AortaPhantom
from jaxmark.data.phantoms.vessels.coronary import CoronaryPhantom
from jaxmark.methods.cascade import Cascade

# Hounsfield units that become 0 and 1: fat and calcified plaque.
WINDOW_HU = (-200.0, 800.0)
EVALUATE = Evaluate(sdr_thresholds_mm=(1.0, 2.0, 3.0, 4.0, 5.0))


def default_preset(platform: str) -> str:
    """The preset if none is named; `platform` is JAX's: "cpu", "gpu" or "tpu"."""
    return "small" if platform == "cpu" else "paper"


def get_config(preset: str = "paper") -> Experiment:
    """See above; ValueError for a preset that does not exist."""
    presets = {
        "paper": paper,
        "small": small,
        "tiny": tiny,
        "aorta": aorta,
        "aorta_small": aorta_small,
        "aorta_tiny": aorta_tiny,
    }
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}, but {', '.join(presets)}")
    return presets[preset]()


def paper() -> Experiment:
    """The size and settings of the paper, which has no augmentation."""
    return Experiment(
        name="vessel_cascade",
        data=Data(
            spacing_mm=(0.4, 0.4, 0.4),
            crop=(512, 512, 512),
            margin=0,
            intensity="window",
            intensity_window=WINDOW_HU,
        ),
        phantom=CoronaryPhantom(),
        method=Cascade(),
        augment=Augment(translation_voxels=0),
        train=Train(batch=1, validate_every=1_000),
        evaluate=EVALUATE,
    )


def small() -> Experiment:
    """Voxels of four times the length; values set here are ours."""
    experiment = paper()
    experiment.name = "vessel_cascade_small"
    experiment.data.spacing_mm = (1.6, 1.6, 1.6)
    experiment.data.crop = (128, 128, 128)
    experiment.phantom = CoronaryPhantom(
        train=40, val=16, test=20, spacing_mm=(1.6, 1.6, 1.6), shape=(128, 128, 128)
    )
    experiment.method = Cascade(
        steps=500,
        refine_steps=800,
        widths=(16, 32, 64),
        weights="cross_entropy",
        sigma_mm=8.0,
        patch=16,
        reach_mm=8.0,
        refine="heatmap",
        refine_widths=(16, 32),
        refine_sigma_mm=2.0,
        refine_batch=2,
        decay=0.5,
    )
    experiment.train = Train(batch=1, log_every=20, validate_every=250)
    return experiment


def tiny() -> Experiment:
    """Seconds."""
    experiment = small()
    experiment.name = "vessel_cascade_tiny"
    experiment.data.spacing_mm = (6.4, 6.4, 6.4)
    experiment.data.crop = (32, 32, 32)
    experiment.phantom = CoronaryPhantom(
        train=3, val=1, test=2, spacing_mm=(6.4, 6.4, 6.4), shape=(32, 32, 32)
    )
    experiment.method = Cascade(
        steps=3,
        refine_steps=3,
        factor=2,
        widths=(4, 8),
        sides=(0.3,),
        patch=8,
        reach_mm=20.0,
        refine_widths=(4, 4),
        hidden=8,
        refine_batch=2,
    )
    experiment.train = Train(batch=1, log_every=1, validate_every=3)
    return experiment


def aorta() -> Experiment:
    """The paper's second cohort: its scans were cropped by hand, and stage 1 sees more of them."""
    experiment = paper()
    experiment.name = "aorta_cascade"
    phantom = AortaPhantom()
    experiment.phantom = phantom
    experiment.data.spacing_mm, experiment.data.crop = phantom.spacing_mm, phantom.shape
    experiment.method = Cascade(factor=2)
    return experiment


def aorta_small() -> Experiment:
    """Voxels of about three times the length, and our losses."""
    experiment = small()
    experiment.name = "aorta_cascade_small"
    phantom = AortaPhantom(
        train=25, val=10, test=20, spacing_mm=(2.4, 2.4, 2.4), shape=(88, 80, 240)
    )
    experiment.phantom = phantom
    experiment.data.spacing_mm, experiment.data.crop = phantom.spacing_mm, phantom.shape
    experiment.method = dataclasses.replace(
        experiment.method, factor=2, reach_mm=12.0, refine_sigma_mm=3.0
    )
    return experiment


def aorta_tiny() -> Experiment:
    """Seconds."""
    experiment = tiny()
    experiment.name = "aorta_cascade_tiny"
    phantom = AortaPhantom(train=2, val=1, test=1, spacing_mm=(9.6, 9.6, 9.6), shape=(24, 20, 60))
    experiment.phantom = phantom
    experiment.data.spacing_mm, experiment.data.crop = phantom.spacing_mm, phantom.shape
    return experiment
