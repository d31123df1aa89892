"""Right ventricular insertion points on short-axis cine MR slices of patients.

    python -m jaxmark.main --config=experiments/cardiac_sax.py:small/GAN --workdir=runs/sax \\
        --config.data.root=FOLDER

FOLDER holds `images/`, `landmarks.csv` (columns case, landmark, x_px, y_px) and `splits.json`. The
size of a pixel is unknown, so errors are in pixels. Slices keep their pixels and are padded or
cropped to 256 x 256 around their middle, as Kanakatte et al. do (`small`: to 160 x 160).

A preset is SIZE/ROW. Rows: `heatmap`, regression of one heatmap a landmark; `GAN`, the method
of the paper. Sizes: `small`, for two CPU cores; `full`, for a GPU, not run yet.
"""

from jaxmark.config import Augment, Data, Evaluate, Experiment, Predict, Train
from jaxmark.methods.cardiac_gan import CardiacGAN
from jaxmark.methods.heatmap import HeatmapRegression

LANDMARKS = ("RVI anterior", "RVI inferior")
ROWS = {"heatmap": "subvoxel", "GAN": "contour"}  # and their decoders
SIZES = ("small", "full")


def get_config(preset: str = "small/heatmap") -> Experiment:
    """`SIZE/ROW`; ValueError for one that does not exist."""
    size, _, row = preset.partition("/")
    if size not in SIZES or row not in ROWS:
        known = ", ".join(f"{a}/{b}" for a in SIZES for b in ROWS)
        raise ValueError(f"there is no preset {preset!r}, but {known}")
    small = size == "small"
    return Experiment(
        name=f"cardiac_sax_{size}_{row.lower()}",
        data=Data(
            landmarks=LANDMARKS,
            unit="px",
            grid="native",
            spacing_mm=(1.0, 1.0, 1.0),
            # All points lie within 80 pixels of the middle.
            crop=(160, 160, 1) if small else (256, 256, 1),
            margin=16,
        ),
        method=gan(small) if row == "GAN" else heatmap(small),
        augment=Augment(
            translation_voxels=16,
            # About one patient in six is stored turned by a quarter.
            rotation_degrees=110,
            scale=0.15,
            contrast=0.2,
            brightness=0.1,
        ),
        train=Train(batch=8, validate_every=250 if small else 1000),
        predict=Predict(decoder=ROWS[row]),
        evaluate=Evaluate(sdr_thresholds_px=(2.0, 3.0, 5.0)),
    )


def heatmap(small: bool) -> HeatmapRegression:
    """One heatmap for each landmark; lengths are pixels."""
    return HeatmapRegression(
        steps=3000 if small else 20_000,
        widths=(12, 24, 48, 96, 128) if small else (32, 64, 128, 256, 256),
        head=0,
        loss="cross_entropy",
        sigma_mm=2.5,
        learning_rate=1e-3,
        decay=0.6,
    )


def gan(small: bool) -> CardiacGAN:
    """One heatmap of all landmarks, and a discriminator."""
    if not small:
        return CardiacGAN(steps=20_000)
    return CardiacGAN(
        steps=5000,
        widths=(16, 32, 64, 96),
        # Five layers give 5 x 5 patches; the paper's six need sides that 64 divides.
        discriminator_widths=(16, 32, 64, 64, 64),
        learning_rate=1e-3,
        patience=4,
    )
