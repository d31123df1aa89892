"""Scans of two blocks, and a method that knows what they are: stands for one of segments."""

import jax.numpy as jnp
import numpy as np
from conftest import random_rotation

from jaxmark.config import Augment, Data, Experiment, Predict
from jaxmark.core.anatomy import Scheme, Segment
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.frame import Frame, load_frame, save_frame
from jaxmark.data.scans import Scan
from jaxmark.inference.calibration import Calibration
from jaxmark.inference.model import TrainedModel
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import (
    FORKS,
    SEGMENTATION,
    SEGMENTS_PRESENT,
    Method,
    Prediction,
    Task,
    Variables,
    whole_volume_stage,
)
from jaxmark.system.devices import data_mesh

SCHEME = Scheme(
    "blocks",
    ("a", "b"),
    (),
    (Segment("dim", ("a",), True), Segment("bright", ("a", "b"), True), Segment("never", ("b",))),
)
CROP, MARGIN, SPACING = (24, 20, 16), 2, (2.0, 2.0, 2.5)
SHAPE = tuple(n + 2 * MARGIN for n in CROP)
# Middles and halves of the sides of two blocks, LPS mm.
BLOCKS = (((-9, 4, 3), (7, 5, 6)), ((8, -3, -4), (6, 8, 5)))
VALUES = (400.0, 1000.0)
PRESENT, FORK = (0.8, 0.9, 0.25), (0.75, 0.125)


def blocks(points_mm):
    """Labels of points (..., 3): no rotation or flip maps the two blocks to each other."""
    labels = np.zeros(points_mm.shape[:-1], np.uint8)
    for label, (middle, half) in enumerate(BLOCKS, start=1):
        labels[(np.abs(points_mm - np.array(middle)) < half).all(-1)] = label
    return labels


def scan_on(shape, ijk_to_lps):
    points = apply_affine(ijk_to_lps, np.stack(np.indices(shape), -1).astype(float))
    values = np.array([0.0, *VALUES], np.float32)
    return Scan(values[blocks(points)], ijk_to_lps)


class Thresholds:
    """Stands for a trained network: labels by intensity, which the percentiles map to 0, 0.4, 1.

    Of what it knows of segments it tells some.
    """

    def __init__(self, *tells):
        self.tells = tells or (SEGMENTATION, SEGMENTS_PRESENT, FORKS)

    def build(self):
        task = Task(SCHEME, CROP, (MARGIN,) * 3, SPACING, Augment())
        return Method(
            init=None,
            phases=(),
            stages=whole_volume_stage(task, self.predict),
            tells=frozenset(self.tells),
        )

    def predict(self, variables, image):
        volume = image[..., 0]
        labels = (volume > 0.2).astype(jnp.uint8) + (volume > 0.7).astype(jnp.uint8)
        ones = jnp.ones((len(volume), 1))
        return Prediction(
            {
                "argmax": ones[..., None] * jnp.ones((2, 3)),
                "subvoxel": ones[..., None] * 3.0 + jnp.zeros((2, 3)),
            },
            score=ones * jnp.ones(2),
            evidence=ones * jnp.ones(2),
            maps=self._told({SEGMENTATION: labels}),
            probabilities=self._told(
                {SEGMENTS_PRESENT: ones * jnp.array(PRESENT), FORKS: ones * jnp.array(FORK)}
            ),
        )

    def _told(self, named):
        return {name: array for name, array in named.items() if name in self.tells}


def model(folder, method=None):
    experiment = Experiment(
        method=HeatmapRegression(),
        data=Data(crop=CROP, margin=MARGIN, spacing_mm=SPACING, workers=1),
        predict=Predict(batch=2),
    )
    frame = Frame(
        register="none",
        metric="correlation",
        search_degrees=180.0,
        template=None,
        common_to_template=np.eye(4),
        grid_to_common=plain_grid(),
        shape=SHAPE,
        intensity="percentiles",
        intensity_range=(0.5, 100.0),
        segments=SCHEME.segments,
    )
    save_frame(frame, SCHEME.landmarks, folder)
    return TrainedModel(
        experiment=experiment,
        preparation=folder,
        frame=load_frame(folder)[0],
        scheme=SCHEME,
        predictor=Predictor((method or Thresholds()).build(), 2, data_mesh()),
        variables=Variables({}),
        calibration=Calibration.unknown(2, 0.9),
    )


def plain_grid():
    return compose_affine(np.diag(SPACING), -(np.array(SHAPE) - 1) / 2 * SPACING)


def stored(rng):
    """Grids on which the same blocks are stored: name, shape, place."""
    shape, spacing = (40, 37, 34), np.array([1.5, 1.5, 1.5])
    plain = compose_affine(np.diag(spacing), -(np.array(shape) - 1) / 2 * spacing)
    yield "plain", shape, plain
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:3, 3] = [shape[0] - 1, shape[1] - 1, 0]
    yield "flipped", shape, plain @ flip
    permuted = np.eye(4)
    permuted[:3, :3] = np.eye(3)[:, (2, 0, 1)]
    yield "permuted", tuple(shape[axis] for axis in (1, 2, 0)), plain @ permuted
    for number in range(2):
        spacing = rng.uniform(0.9, 2.5, 3)
        size = np.ceil(80 / spacing).astype(int)
        axes = random_rotation(rng) * spacing
        yield f"oblique{number}", tuple(size.tolist()), compose_affine(axes, -axes @ (size - 1) / 2)
