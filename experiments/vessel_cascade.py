"""Landmarks at full resolution in CT angiograms of the heart: two stages (Tan et al., 2019).

python -m jaxmark.main --config=experiments/vessel_cascade.py

Without data of yours this makes a synthetic cohort (`jaxmark/data/phantoms/vessels`). Without a
preset the device decides: `paper` on an accelerator, `small` on a CPU.

- `paper`: 75 training and 40 test volumes of 512^3 voxels of 0.4 mm, 5 landmarks; stage 1 on voxels
  four times as long, patches of 64 voxels, batch 4, Adam at 1e-3, 11,250 and 45,000 steps. Not run
  yet: it needs a GPU, and a volume in memory takes 0.3 GB.
- `small`: voxels of 1.6 mm; for a CPU.
- `tiny`: for tests.

The table `landmarks_stage1.csv` has what the first stage says alone: evaluate it with
--config.predict.decoder=stage1.
"""

from jaxmark.config import Augment, Data, Evaluate, Experiment, Train
from jaxmark.data.phantoms.vessels.coronary import CoronaryPhantom
from jaxmark.methods.cascade import Cascade


def default_preset(platform: str) -> str:
    """The preset where none is named; `platform` is JAX's: "cpu", "gpu" or "tpu"."""
    return "small" if platform == "cpu" else "paper"


def get_config(preset: str = "paper") -> Experiment:
    """See above; ValueError for a preset that does not exist."""
    presets = {"paper": paper, "small": small, "tiny": tiny}
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}, but {', '.join(presets)}")
    return presets[preset]()


def paper() -> Experiment:
    """The size and settings of the paper, which augments nothing."""
    return Experiment(
        name="vessel_cascade",
        data=Data(
            spacing_mm=(0.4, 0.4, 0.4),
            crop=(512, 512, 512),
            margin=0,
            intensity="window",
            intensity_window=(-200.0, 800.0),
        ),
        phantom=CoronaryPhantom(),
        method=Cascade(),
        augment=Augment(translation_voxels=0),
        train=Train(batch=1, validate_every=1_000),
        evaluate=Evaluate(sdr_thresholds_mm=(1.0, 2.0, 3.0, 4.0, 5.0)),
    )


def small() -> Experiment:
    """Voxels of four times the length; what is set is ours."""
    experiment = paper()
    experiment.name = "vessel_cascade_small"
    experiment.data.spacing_mm = (1.6, 1.6, 1.6)
    experiment.data.crop = (128, 128, 128)
    experiment.phantom = CoronaryPhantom(
        train=40, val=16, test=20, spacing_mm=(1.6, 1.6, 1.6), shape=(128, 128, 128)
    )
    experiment.method = Cascade(
        steps=600,
        refine_steps=1_000,
        widths=(16, 32, 64),
        weights="cross_entropy",
        sigma_mm=8.0,
        patch=16,
        reach_mm=8.0,
        refine="heatmap",
        refine_widths=(16, 32),
        refine_sigma_mm=2.0,
        decay=0.5,
    )
    experiment.train = Train(batch=2, log_every=20, validate_every=200)
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
