"""45 skull landmarks on micro-CT scans of mouse heads, which lie at arbitrary rotations.

    python -m jaxmark.main --config=experiments/mouse_ct.py --workdir=runs/mouse \\
        --config.data.root=FOLDER

FOLDER holds `images/`, `landmarks.csv` and `splits.json`.
"""

from jaxmark.config import Augment, Data, Evaluate, Experiment, Train
from jaxmark.methods.heatmap import HeatmapRegression


def get_config(preset: str = "") -> Experiment:
    """Only one preset."""
    return Experiment(
        name="mouse_ct",
        data=Data(
            register="similarity",
            spacing_mm=(0.35, 0.35, 0.35),
            crop=(64, 48, 64),
            margin=6,
            intensity_percentiles=(0.5, 99.5),
        ),
        method=HeatmapRegression(
            steps=3000, widths=(16, 32, 64, 128), sigma_mm=0.7, learning_rate=1e-3, decay=0.5
        ),
        augment=Augment(
            translation_voxels=3, rotation_degrees=10, scale=0.08, contrast=0.1, brightness=0.05
        ),
        train=Train(batch=1, validate_every=200),
        evaluate=Evaluate(sdr_thresholds_mm=(0.2, 0.4, 0.6, 0.8, 1.0, 2.0)),
    )
