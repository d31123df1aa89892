"""45 skull landmarks on micro-CT scans of mouse heads, which lie at arbitrary rotations.

    python -m jaxmark.main --config=experiments/mouse_ct.py --workdir=runs/mouse_ct \\
        --config.data.root=FOLDER

FOLDER holds `images/`, `landmarks.csv` and `splits.json`. It takes 18 minutes on 2 CPU cores with
huge pages; expect 0.23 mm on the validation cases, where the mean position is 6.2 mm off in the
scanner's frame and 0.27 mm after registration.

Registration by intensity (`register`) turns the heads to a common frame, so augmentation only has
to cover the remaining differences. As all heads then have one place, the network gets voxel
coordinates as input (`coordinates`).
"""

from jaxmark.config import Augment, Data, Evaluate, Experiment, Train
from jaxmark.methods.heatmap import HeatmapRegression


def get_config(preset: str = "") -> Experiment:
    """The experiment; it has no presets: ValueError for one."""
    if preset:
        raise ValueError(f"there is no preset {preset!r}: this experiment has none")
    return Experiment(
        name="mouse_ct",
        data=Data(
            register="similarity",
            spacing_mm=(0.35, 0.35, 0.35),
            crop=(56, 48, 56),
            margin=6,
        ),
        method=HeatmapRegression(
            steps=2000,
            coordinates=True,
            loss="cross_entropy",
            sigma_mm=0.7,
            learning_rate=1e-3,
            decay=0.6,
        ),
        augment=Augment(
            translation_voxels=3, rotation_degrees=10, scale=0.08, contrast=0.1, brightness=0.05
        ),
        train=Train(validate_every=250),
        evaluate=Evaluate(sdr_thresholds_mm=(0.2, 0.4, 0.6, 0.8, 1.0, 2.0)),
    )
