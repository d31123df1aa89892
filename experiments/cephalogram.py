"""19 points on lateral X-rays of the skull (ISBI 2015; Wang et al., Med. Image Anal. 2016).

    python -m jaxmark.main --config=experiments/cephalogram.py:small --workdir=runs/cephalogram \\
        --config.data.root=FOLDER

FOLDER holds `images/`, `landmarks.csv` (columns case, landmark, x_px, y_px) and `splits.json`; its
pixels measure 0.4 mm, or what `--config.data.pixel_size_mm` says. The challenge scores the mean
radial error in mm and the points within 2, 2.5, 3 and 4 mm.

`small` has pixels of 0.8 mm and is for two CPU cores; the other preset has 0.4 mm, for a GPU.
"""

from jaxmark.config import Augment, Data, Evaluate, Experiment, Train
from jaxmark.methods.heatmap import HeatmapRegression


def get_config(preset: str = "") -> Experiment:
    """Presets: "" and "small"; ValueError for another one."""
    if preset not in ("", "small"):
        raise ValueError(f"there is no preset {preset!r}, but small, or none")
    small = preset == "small"
    return Experiment(
        name="cephalogram",
        data=Data(
            pixel_size_mm=0.4,
            spacing_mm=(0.8, 0.8, 1.0) if small else (0.4, 0.4, 1.0),
            crop=(240, 288, 1) if small else (480, 576, 1),
            margin=8,
        ),
        method=HeatmapRegression(
            steps=2500 if small else 20_000,
            widths=(16, 32, 64, 96, 128) if small else (32, 64, 96, 128, 192, 256),
            loss="cross_entropy",
            # Films are centred on the head, so a pixel's place says much about a landmark.
            coordinates=True,
            sigma_mm=1.6,
            learning_rate=1e-3,
            decay=0.6,
        ),
        augment=Augment(
            translation_voxels=8,
            rotation_degrees=8,
            scale=0.08,
            contrast=0.3,
            brightness=0.1,
            elastic_mm=3.0,
        ),
        train=Train(batch=4, validate_every=250 if small else 1000),
        evaluate=Evaluate(sdr_thresholds_mm=(2.0, 2.5, 3.0, 4.0)),
    )
