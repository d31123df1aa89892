"""Four sets of landmarks of the heart on cine MR slices, by the network of Kanakatte et al.

python -m jaxmark.main --config=experiments/cardiac_gan.py:small/RVI/GAN

A preset is SIZE/SET/ROW. Slices are synthetic (`jaxmark/data/phantoms/cine`).
`python -m experiments.cardiac_table` runs all rows of all sets, and a test on another scanner.

Sets, as in the paper: `ACA` and `BCA`, the LV's centre in an apical and in a basal slice; `MV`, the
two hinges of the mitral valve; `RVI`, the two points where the RV inserts.

Rows: `GAN`; `GAN-no-FPL`, without the foreground pixel loss; `heatmap`, plain regression of one
heatmap a landmark, as long and on the same views.

Sizes:

- `paper`: 100 people, 256 x 256 pixels, as many slices and epochs as in the paper. Not run yet: it
  needs a GPU.
- `small`: 128 x 128 pixels of 1.5 to 1.8 mm around the picture's middle; for a CPU.
- `tiny`: for tests.

Of the paper's augmentation we leave out flips: nobody has a mirrored heart, and no landmark here is
the mirror image of another.
"""

import dataclasses
from collections.abc import Callable

from jaxmark.config import Augment, Data, Evaluate, Experiment, Predict, Train
from jaxmark.data.phantoms.cine.cohort import CinePhantom
from jaxmark.methods.cardiac_gan import CardiacGAN
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.results.compare import Published

REFERENCE, PLAIN, HEATMAP = "GAN", "GAN-no-FPL", "heatmap"
ROWS = (REFERENCE, PLAIN, HEATMAP)
# Tables 1 and 2 of the paper: mean and SD of errors in pixels, and % within 2, 3 and 5 pixels.
PAPER: dict[str, Published] = {
    "ACA": {"mre_mm": 1.8, "sd_mm": 1.2, "sdr": [70.0, 85.0, 95.0]},
    "BCA": {"mre_mm": 1.6, "sd_mm": 1.5, "sdr": [75.0, 85.0, 90.0]},
    "MV": {"mre_mm": 3.0, "sd_mm": 1.4, "sdr": [62.0, 88.0, 98.0]},
    "RVI": {"mre_mm": 2.8, "sd_mm": 1.5, "sdr": [72.0, 86.0, 96.0]},
}
SETS = tuple(PAPER)
# Section 4.2: 80, 80, 5142 and 542 slices, of 100 people; and how many epochs.
FRAMES = {"ACA": 1, "BCA": 1, "MV": 51, "RVI": 6}
EPOCHS = {"ACA": 1500, "BCA": 1500, "MV": 500, "RVI": 1000}
SPACING = (1.0, 1.0, 1.0)  # pixels: the grid is each picture's own


def paper(name: str) -> Experiment:
    """The size and settings of the paper; batch, widths and augmentation are ours."""
    phantom = CinePhantom(view=name, frames=FRAMES[name])
    batch = 8
    return Experiment(
        name="cardiac_gan_paper",
        data=Data(unit="px", grid="native", spacing_mm=SPACING, crop=(256, 256, 1), margin=16),
        phantom=phantom,
        method=CardiacGAN(steps=EPOCHS[name] * phantom.train * phantom.frames // batch),
        augment=Augment(
            translation_voxels=16,
            # Some scanners store short-axis slices turned by a quarter.
            rotation_degrees=20 if name == "MV" else 110,
            scale=0.1,
            contrast=0.2,
            brightness=0.1,
            elastic_mm=4.0,
        ),
        train=Train(batch=batch, validate_every=1000, log_every=50),
        predict=Predict(decoder="contour"),
        evaluate=Evaluate(sdr_thresholds_px=(2.0, 3.0, 5.0)),
    )


def small(name: str) -> Experiment:
    """For a CPU; values set here are ours, chosen on phantoms' validation slices."""
    experiment = paper(name)
    experiment.name = "cardiac_gan_small"
    experiment.data.crop = (128, 128, 1)
    experiment.phantom = CinePhantom(view=name, frames=min(FRAMES[name], 3), pixel_mm=(1.5, 1.8))
    experiment.method = CardiacGAN(
        steps=800,
        widths=(16, 32, 64, 96),
        discriminator_widths=(16, 32, 64, 64, 64, 64),
        learning_rate=1e-3,
    )
    experiment.train = Train(batch=8, validate_every=100)
    experiment.predict.pictures = False
    return experiment


def tiny(name: str) -> Experiment:
    """Seconds."""
    experiment = small(name)
    experiment.name = "cardiac_gan_tiny"
    experiment.data.crop, experiment.data.margin = (48, 48, 1), 4
    experiment.phantom = CinePhantom(
        train=3, val=1, test=2, view=name, frames=2, pixel_mm=(4.5, 5.0), matrix=(48, 96)
    )
    experiment.method = CardiacGAN(
        steps=3, widths=(4, 8), filters=1, discriminator_widths=(4, 8), window=1
    )
    experiment.augment.translation_voxels = 4
    experiment.train = Train(batch=2, log_every=1, validate_every=3)
    return experiment


SIZES: dict[str, Callable[[str], Experiment]] = {"paper": paper, "small": small, "tiny": tiny}


def split(preset: str) -> tuple[str, str, str]:
    """Size, set and row; ValueError for a preset that does not exist."""
    parts = tuple(preset.split("/"))
    known = (tuple(SIZES), SETS, ROWS)
    if len(parts) != 3 or any(part not in some for part, some in zip(parts, known, strict=True)):
        listed = ", ".join(
            f"{word} of {', '.join(some)}"
            for word, some in zip(("SIZE", "SET", "ROW"), known, strict=True)
        )
        raise ValueError(f"there is no preset {preset!r}, but SIZE/SET/ROW with {listed}")
    size, name, row = parts
    return size, name, row


def get_config(preset: str = "small/RVI/GAN") -> Experiment:
    """`SIZE/SET/ROW`; ValueError for one that does not exist."""
    size, name, row = split(preset)
    experiment = SIZES[size](name)
    experiment.name += f"_{name}_{row}".lower().replace("-", "_")
    full = experiment.method
    if row == PLAIN:
        experiment.method = dataclasses.replace(full, foreground="none")
    elif row == HEATMAP:
        experiment.method = HeatmapRegression(
            steps=full.steps,
            widths=(*full.widths, full.widths[-1]),
            head=0,
            loss="cross_entropy",
            # The spread of the paper's Gaussians: variances of 7 and 5 pixels^2.
            sigma_mm=2.5,
            learning_rate=1e-3,
            decay=0.6,
        )
        experiment.predict.decoder = "subvoxel"
    return experiment
