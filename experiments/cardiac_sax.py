"""Right ventricular insertion points on short-axis cine MR slices of patients.

    python -m jaxmark.main --config=experiments/cardiac_sax.py:small --workdir=runs/cardiac_sax \\
        --config.data.root=FOLDER

FOLDER holds `images/`, `landmarks.csv` (columns case, landmark, x_px, y_px) and `splits.json`. The
size of a pixel is not known: errors are pixels. Slices keep their own pixels and are padded or
cropped to 256 x 256 about their middle, as Kanakatte et al. do.

`small` is meant for two CPU cores.
"""

from jaxmark.config import Augment, Data, Evaluate, Experiment, Train
from jaxmark.methods.heatmap import HeatmapRegression

LANDMARKS = ("RVI anterior", "RVI inferior")


def get_config(preset: str = "") -> Experiment:
    """Presets: "" and "small"; ValueError for another one."""
    if preset not in ("", "small"):
        raise ValueError(f"there is no preset {preset!r}, but small, or none")
    small = preset == "small"
    return Experiment(
        name="cardiac_sax",
        data=Data(
            landmarks=LANDMARKS,
            unit="px",
            grid="native",
            spacing_mm=(1.0, 1.0, 1.0),
            crop=(256, 256, 1),
            margin=16,
        ),
        method=HeatmapRegression(
            steps=1000 if small else 20_000,
            widths=(12, 24, 48, 96, 128) if small else (32, 64, 128, 256, 256),
            head=0,
            loss="cross_entropy",
            # Pixels: the grid is native.
            sigma_mm=2.5,
            learning_rate=1e-3,
            decay=0.6,
        ),
        augment=Augment(
            translation_voxels=16, rotation_degrees=20, scale=0.15, contrast=0.2, brightness=0.1
        ),
        train=Train(batch=4, validate_every=200 if small else 1000),
        evaluate=Evaluate(sdr_thresholds_px=(2.0, 3.0, 5.0)),
    )
