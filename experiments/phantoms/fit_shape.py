"""Fits the phantom's shape model to real landmarks: so was `data/phantoms/cow/shape.json` made.

python -m experiments.phantoms.fit_shape --landmarks=cow_landmarks.npz

The file is described in `real_landmarks.py`.
"""

import json
from pathlib import Path

import numpy as np
from absl import app, flags
from scipy.spatial.transform import Rotation

from experiments.phantoms.real_landmarks import mirrored_names, read_real
from jaxmark.core.shapes import align_shapes, drop_outliers, fit_gaussian, mirror
from jaxmark.data.phantoms.cow import shape
from jaxmark.system.files import write_text_atomic

_LANDMARKS = flags.DEFINE_string("landmarks", None, "The .npz file.", required=True)
_OUTPUT = flags.DEFINE_string("output", str(shape.MODEL_FILE), "Where to write the model.")


def main(_: list[str]) -> None:
    """Fit and write."""
    model, report = fit(*read_real(Path(_LANDMARKS.value)))
    write_text_atomic(Path(_OUTPUT.value), json.dumps(model, allow_nan=False) + "\n")
    print(report)


def fit(shapes: np.ndarray, names: list[str]) -> tuple[dict[str, object], str]:
    """The model as JSON, and a line that says what was left out."""
    mirrored = mirrored_names(names)
    aligned, maps = align_shapes(shapes, mirrored)
    both = np.concatenate([aligned, mirror(aligned, mirrored)])
    kept = both
    for _ in range(4):
        mean, covariance = fit_gaussian(kept.reshape(len(kept), -1))
        kept = drop_outliers(both, mean, covariance)
    angles = Rotation.from_matrix(maps[:, :3, :3]).as_euler("xyz", degrees=True)
    low, high = np.percentile(angles, [16, 84], axis=0)
    seen, left = (~np.isnan(s[: len(shapes), :, 0]) for s in (both, kept))
    model = {
        "schema_version": 1,
        "source": "clatfd/GNN-ART-LABEL (Chen et al., MICCAI 2020), landmarks of 560 people",
        "licence": "Apache-2.0",
        "landmarks": names,
        "mean_mm": np.round(mean.reshape(-1, 3), 3).tolist(),
        "covariance_mm2": np.round(covariance, 4).tolist(),
        "scanner_rotation_sd_degrees": np.round((high - low) / 2, 1).tolist(),
    }
    return model, f"{(seen & ~left).sum()} of {seen.sum()} points left out as outliers"


if __name__ == "__main__":
    app.run(main)
