"""45 skull landmarks on micro-CT scans of mouse heads, refined at the scans' own voxels.

    python -m jaxmark.main --config=experiments/mouse_ct_cascade.py --workdir=runs/mouse_cascade \\
        --config.data.root=FOLDER
"""

from jaxmark.config import Augment, Data, Evaluate, Experiment, Train
from jaxmark.methods.cascade import Cascade


def get_config(preset: str = "") -> Experiment:
    """Only one preset."""
    return Experiment(
        name="mouse_ct_cascade",
        data=Data(
            register="similarity",
            spacing_mm=(0.14, 0.14, 0.14),
            crop=(144, 120, 144),
            margin=15,
        ),
        method=Cascade(
            steps=1200,
            refine_steps=1200,
            factor=3,
            coordinates=True,
            head=64,
            widths=(16, 32, 64),
            weights="cross_entropy",
            sigma_mm=0.7,
            patch=16,
            reach_mm=0.6,
            refine="heatmap",
            refine_widths=(8, 16),
            refine_sigma_mm=0.3,
            refine_batch=2,
            decay=0.6,
        ),
        augment=Augment(
            translation_voxels=9, rotation_degrees=10, scale=0.08, contrast=0.1, brightness=0.05
        ),
        train=Train(validate_every=400),
        evaluate=Evaluate(sdr_thresholds_mm=(0.2, 0.4, 0.6, 0.8, 1.0, 2.0)),
    )
