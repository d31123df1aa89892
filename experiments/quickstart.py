"""The whole chain on a small synthetic cohort: from raw scans to a report with pictures.

python -m jaxmark.main --config=experiments/quickstart.py --workdir=runs/quickstart

Two minutes on a 2-core CPU; expect 0.9 mm on the test cases, where the mean position is 4.4 mm off.
"""

from jaxmark.config import Augment, Data, Evaluate, Experiment, Phantom, Predict, Train
from jaxmark.methods.heatmap import HeatmapRegression


def get_config(preset: str = "") -> Experiment:
    """`tiny` is for tests: it shows that everything runs, not that anything is learned."""
    tiny = preset == "tiny"
    return Experiment(
        name="quickstart",
        data=Data(
            spacing_mm=(1.5, 1.5, 1.5),
            crop=(32, 32, 24),
            margin=4,
            intensity_percentiles=(5.0, 99.5),
        ),
        phantom=Phantom(train=3, val=1, test=2) if tiny else Phantom(train=24, val=6, test=10),
        method=HeatmapRegression(
            steps=6 if tiny else 600,
            widths=(4, 8) if tiny else (16, 32, 64),
            loss="cross_entropy",
            sigma_mm=2.0,
            learning_rate=1e-3,
            decay=0.5,
        ),
        augment=Augment(translation_voxels=4, rotation_degrees=10, scale=0.1),
        train=Train(
            batch=1 if tiny else 2,
            log_every=2 if tiny else 20,
            validate_every=3 if tiny else 100,
        ),
        predict=Predict(decoder="subvoxel"),
        evaluate=Evaluate(sdr_thresholds_mm=(1.0, 2.0, 3.0, 4.0)),
    )
