"""What a scanner does to the image of a body."""

import numpy as np
from scipy.ndimage import correlate1d

from jaxmark.data.phantoms.grids import Grid


def blur(image: np.ndarray, grid: Grid, sigma_mm: float) -> tuple[np.ndarray, float]:
    """Blur by the scanner's point spread; also the share of white noise's SD that this leaves.

    Three taps with the variance of the Gaussian; a scan's voxels go with its resolution, so the
    sigma is held between 0.35 and 0.7 voxels.
    """
    left = 1.0
    for axis, sigma in enumerate(np.clip(sigma_mm / grid.spacing_mm, 0.35, 0.7)):
        taps = np.array([sigma**2 / 2, 1 - sigma**2, sigma**2 / 2])
        image = correlate1d(image, taps, axis, output=np.float32, mode="nearest")
        left *= float(np.sqrt((taps**2).sum()))
    return image, left
