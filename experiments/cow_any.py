"""Circle-of-Willis landmarks in any MRA or CTA, by a detector trained on synthetic people alone.

    python -m jaxmark.main --config=experiments/cow_any.py:small --workdir=runs/any
    python -m jaxmark.main --config=experiments/cow_any.py:small --workdir=runs/any \\
        --mode=predict --input=FOLDER_OF_SCANS --output=found

It is trained on an endless stream of label maps of synthetic people. Every step draws a new
appearance: contrast of MRA, of CTA, or any other; resolution, noise, field of view; skull and
brain, or arteries alone (after SynthSeg, Billot et al., Med. Image Anal. 2023). A coarse network
finds the circle in a whole scan, in any pose that scanners give. A fine network finds the landmarks
in this pose. Scans' headers must state the patient's orientation.

Validation and test cases are phantoms in the simulated MRA and CTA of `cow.py`, in turn: whole, cut
to a slab, or cut to a small box. Training does not see their contrast and noise as such. Radii and
refusals are calibrated on them.

- `small`: for two CPU cores, under an hour.
- `full`: a finer grid, wider networks; for a GPU. Not run yet.
- `tiny`: for tests; it shows that everything runs.
"""

from jaxmark.config import Appearance, Augment, Data, Evaluate, Experiment, Stream, Train
from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.methods.coarse_to_fine import CoarseToFine


def get_config(preset: str = "small") -> Experiment:
    """See above; ValueError for a preset that does not exist."""
    presets = {"small": small, "full": full, "tiny": tiny}
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}, but {', '.join(presets)}")
    return presets[preset]()


def small() -> Experiment:
    """Under an hour on two CPU cores."""
    return Experiment(
        name="cow_any_small",
        # Whole heads; larger fields of view are cut off at the ends.
        data=Data(register="middle", spacing_mm=(0.8, 0.8, 0.8), crop=(256, 256, 192), margin=16),
        phantom=CirclePhantom(
            # These cases only give the frame: training sees label maps.
            train=3,
            val=18,
            test=24,
            unpaired=0,
            modality="both",
            views=("whole", "slab", "box"),
            spacing_mm=(0.6, 0.6, 0.8),
            shape=(208, 208, 128),
            rotation_sd_degrees=10.0,
            translation_sd_mm=12.0,
            annotate_missing=False,
            pathology=0.15,
        ),
        stream=Stream(on=True, reuse=4, window=16),
        method=CoarseToFine(
            steps=1600,
            fine_steps=5000,
            factor=4,
            widths=(8, 16, 32, 64),
            # 80 x 70 x 60 mm: in many people M1/M2 and others lie outside of a smaller crop.
            spacing_mm=1.25,
            # Wide coarse levels cost little time and give each voxel the context of the crop.
            fine_widths=(16, 32, 64, 64),
            usual_mm=7.0,
            looks=4,
            apart_mm=10.0,
            mirror=True,
            learning_rate=2e-3,
            fine_learning_rate=2e-3,
        ),
        augment=Augment(
            translation_voxels=16,
            rotation_degrees=20,
            scale=0.1,
            flip=0.5,
            # Black blood: 4 % of the images.
            appearance=Appearance(drawn=True, dark=0.12, strangers=0.08),
        ),
        train=Train(batch=2, log_every=20, validate_every=1000),
        evaluate=Evaluate(sdr_thresholds_mm=(2.0, 3.0, 4.0, 5.0, 6.0)),
    )


def full() -> Experiment:
    """Finer voxels and wider networks."""
    experiment = small()
    experiment.name = "cow_any"
    experiment.method = CoarseToFine(
        steps=20_000,
        fine_steps=60_000,
        factor=4,
        widths=(32, 64, 128, 128),
        # 84 x 72 x 60 mm, for the reason given in `small`.
        crop=(112, 96, 80),
        spacing_mm=0.75,
        usual_mm=7.0,
        looks=4,
        apart_mm=10.0,
        mirror=True,
        fine_widths=(32, 64, 128, 128),
        fine_sigma_mm=1.5,
        shift=10,
        learning_rate=3e-4,
        fine_learning_rate=3e-4,
    )
    experiment.train = Train(batch=4, validate_every=1000)
    return experiment


def tiny() -> Experiment:
    """Seconds."""
    experiment = small()
    experiment.name = "cow_any_tiny"
    experiment.data = Data(
        register="middle", spacing_mm=(3.0, 3.0, 3.0), crop=(48, 48, 32), margin=4
    )
    experiment.phantom = CirclePhantom(
        train=1, val=1, test=1, unpaired=0, spacing_mm=(3.0, 3.0, 3.0), shape=(36, 36, 28)
    )
    experiment.method = CoarseToFine(
        steps=2,
        fine_steps=2,
        factor=2,
        widths=(4, 8),
        crop=(16, 16, 12),
        spacing_mm=4.0,
        fine_widths=(4, 8),
        shift=1,
    )
    experiment.stream = Stream(on=True, reuse=2, window=2)
    experiment.augment.translation_voxels = 4
    experiment.train = Train(batch=1, log_every=1, validate_every=2)
    return experiment
