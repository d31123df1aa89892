"""Rigid and affine geometry of landmark sets: fits, distances, rotations. numpy alone.

Points are (..., 3); an affine map is a (4, 4) matrix acting on columns, so that
`apply_affine(a @ b, p) == apply_affine(a, apply_affine(b, p))`.
"""

import numpy as np


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points (..., 3) by `matrix` (4, 4)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def compose_affine(linear: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """The (4, 4) matrix of `p -> linear @ p + translation`."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = translation
    return matrix


def fit_rigid(
    source: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray | None = None,
    scale: bool = False,
) -> np.ndarray:
    """The rotation and translation (and one scale, if asked) of least squared error (Umeyama 1991).

    Minimises `sum_k w_k |s R source_k + t - target_k|^2` over proper rotations R (det +1).

    Args:
        source, target: (K, 3), in any one unit; entries of weight 0 may be NaN.
        weights: (K,) not negative, or bool; None is all ones.
        scale: also fit s; else s = 1.

    Returns:
        (4, 4), source to target.

    Raises:
        ValueError: fewer than three points have weight, or they lie on one line: the rotation is
            then not determined.
    """
    weights = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
    used = weights > 0
    x, y, w = source[used].astype(np.float64), target[used].astype(np.float64), weights[used, None]
    if len(x) < 3:
        raise ValueError(f"a rigid fit needs 3 points, got {len(x)}")
    w = w / w.sum()
    x_mean, y_mean = (w * x).sum(0), (w * y).sum(0)
    x, y = x - x_mean, y - y_mean
    u, singular, vt = np.linalg.svd((w * y).T @ x)
    if singular[1] <= 1e-9 * np.sqrt((w * x * x).sum() * (w * y * y).sum()):
        raise ValueError("a rigid fit needs 3 points that do not lie on one line")
    signs = np.array([1.0, 1.0, np.linalg.det(u @ vt)])  # never a reflection
    rotation = (u * signs) @ vt
    s = (singular * signs).sum() / (w * x * x).sum() if scale else 1.0
    return compose_affine(s * rotation, y_mean - s * rotation @ x_mean)


def rotation_angle_degrees(rotation: np.ndarray) -> np.ndarray:
    """The angle in [0, 180] by which each rotation matrix (..., 3, 3) turns."""
    # atan2 of sine and cosine: arccos alone loses half the digits near 0 and 180 degrees.
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.sqrt((skew**2).sum((-1, -2)) / 8)
    cosine = (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2
    return np.degrees(np.arctan2(sine, cosine))


def rotation_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4), real part first, of any length."""
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def spread_rotations(count: int) -> np.ndarray:
    """`count` rotations (count, 3, 3) that cover all rotations evenly, the same every time.

    The super-Fibonacci spiral on the 3-sphere (Alexa, CVPR 2022).
    """
    phi, psi = np.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / phi, 2 * np.pi * s / psi
    return rotation_from_quaternion(
        np.stack(
            [
                inner * np.sin(alpha),
                inner * np.cos(alpha),
                outer * np.sin(beta),
                outer * np.cos(beta),
            ],
            -1,
        )
    )


def pick_template(landmarks_mm: np.ndarray, present: np.ndarray) -> int:
    """The most typical case: nearest, after a rigid fit, to the mean shape of all.

    Generalised Procrustes analysis with rigid fits. Sizes count: the template should be of
    typical size too. A case with fewer than three landmarks, or with fewer than half as many
    as the best labelled one, is never picked.

    Args:
        landmarks_mm: (N, K, 3), each case in its own frame; ignored where not present.
        present: (N, K) bool.

    Returns:
        The index of the case.

    Raises:
        ValueError: no case has three landmarks.
    """
    counts = present.sum(1)
    eligible = np.flatnonzero((counts >= 3) & (2 * counts >= counts.max()))
    if not len(eligible):
        raise ValueError("a template needs a case with at least 3 landmarks")
    shapes = np.where(present[..., None], landmarks_mm, 0.0)
    mean, known = shapes[counts.argmax()], present[counts.argmax()]
    for _ in range(10):
        # A case that still shares too few landmarks with the mean cannot be fitted.
        cases = eligible[(present[eligible] & known).sum(1) >= 3]
        fitted = np.stack(
            [apply_affine(fit_rigid(shapes[i], mean, present[i] & known), shapes[i]) for i in cases]
        )
        seen = present[cases][..., None]
        mean = (seen * fitted).sum(0) / np.maximum(seen.sum(0), 1)
        known = seen.any(0)[:, 0]
    squared = (seen * (fitted - mean) ** 2).sum((1, 2)) / seen.sum((1, 2))
    return int(cases[squared.argmin()])
