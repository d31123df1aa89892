"""The mean image around a landmark in all cases, and the place where a case looks like it.

Patches are sampled in the frame of the common shape, so that differently posed heads look alike.
numpy alone, on the host. `N` cases, `K` landmarks; a template has `t` nodes along an axis, a search
block `s`.
"""

import numpy as np

# In each round a case's weight is its likeness to the others at that landmark.
_ROUNDS = 5
# A patch that varies less than this share of the scan's range counts as empty.
_FLAT = 0.01


def alike(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeness of each patch to the other cases' patches, and the weights of their mean.

    Args:
      patches: (N, K, P), intensities as shares of the scan's range; NaN where there is none.

    Returns:
      (N, K) correlations with the weighted mean of the others, NaN where there is no patch, and the
      weights (N, K), with which `template` makes that mean.
    """
    unit = normalised(patches)
    known = np.isfinite(patches).all(-1)
    weights = known.astype(float)
    for _ in range(_ROUNDS):
        found = np.full(known.shape, np.nan)
        for k in range(unit.shape[1]):
            total = weights[:, k] @ unit[:, k]
            others = total - weights[:, k, None] * unit[:, k]
            length = np.maximum(np.linalg.norm(others, axis=-1), 1e-9)
            found[:, k] = (others * unit[:, k]).sum(-1) / length
        weights = np.where(known, np.maximum(found, 0.02) ** 2, 0.0)
    return np.where(known, found, np.nan), weights


def normalised(patches: np.ndarray) -> np.ndarray:
    """Patches (..., P) with mean 0 and length 1; 0 where they are flat, or there is none."""
    away = patches - patches.mean(-1, keepdims=True)
    length = np.linalg.norm(away, axis=-1, keepdims=True)
    flat = ~(length > _FLAT * np.sqrt(patches.shape[-1]))
    return np.where(flat, 0.0, away / np.where(flat, 1.0, length)).astype(np.float32)


def correlations(template: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Correlation of a template (t, t, t') with each window of a block (s, s, s')."""
    windows = np.lib.stride_tricks.sliding_window_view(block, template.shape)
    places = windows.shape[:3]
    flat = windows.reshape(int(np.prod(places)), -1)
    unit = normalised(template.reshape(1, -1))[0]
    mean, squares = flat.mean(-1), (flat**2).mean(-1)
    spread = np.sqrt(np.maximum(squares - mean**2, _FLAT**2)) * np.sqrt(flat.shape[-1])
    return np.asarray((flat @ unit) / spread).reshape(places)


def best_place(found: np.ndarray) -> tuple[np.ndarray, float]:
    """(3,) nodes from the middle at which correlations (a, b, c) are largest, and how large."""
    at = np.array(np.unravel_index(int(found.argmax()), found.shape))
    place = at.astype(float)
    for axis, size in enumerate(found.shape):
        if 0 < at[axis] < size - 1:
            index = [tuple(at + step * (np.arange(3) == axis)) for step in (-1, 0, 1)]
            low, middle, high = (float(found[i]) for i in index)
            curve = low - 2 * middle + high
            place[axis] += 0.5 * (low - high) / curve if curve < 0 else 0.0
    return place - (np.array(found.shape) - 1) / 2, float(found.max())
