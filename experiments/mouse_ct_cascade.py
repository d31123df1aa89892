"""45 skull landmarks on micro-CT scans of mouse heads, refined at the scans' own voxels.

    python -m jaxmark.main --config=experiments/mouse_ct_cascade.py --workdir=runs/mouse_cascade \\
        --config.data.root=FOLDER
    python -m experiments.cascade_stages --workdir=runs/mouse_cascade --output=stages.png

FOLDER is that of `experiments/mouse_ct.py`, whose U-Net sees voxels of 0.35 mm. Here the first
stage sees voxels of 0.42 mm, and the second one patches of 0.14 mm, the scans' own.

It takes 6 minutes on 2 CPU cores; expect 0.15 mm on the validation cases, 0.33 mm from the first
stage alone, and 0.27 mm of the mean position after registration.

There are 16 training heads: a network for each landmark would learn from 16 patches. So the second
stage's networks share all but their last layers (`shared`), and its patches are turned and scaled
as the first stage's volumes are.
"""

from experiments import mouse_ct
from jaxmark.config import Experiment, Train
from jaxmark.methods.cascade import Cascade


def get_config(preset: str = "") -> Experiment:
    """The experiment; it has no presets: ValueError for one."""
    experiment = mouse_ct.get_config(preset)
    experiment.name = "mouse_ct_cascade"
    data = experiment.data
    data.spacing_mm, data.crop, data.margin = (0.14, 0.14, 0.14), (144, 120, 144), 15
    experiment.method = Cascade(
        steps=300,
        refine_steps=1800,
        factor=3,
        widths=(16, 32, 64),
        head=64,
        coordinates=True,
        weights="cross_entropy",
        sigma_mm=0.7,
        patch=16,
        reach_mm=0.5,
        looks=2,
        shifted=1,
        shared=True,
        refine_widths=(16, 32, 32),
        decay=0.6,
    )
    experiment.augment.translation_voxels = 9
    experiment.train = Train(validate_every=150)
    return experiment
