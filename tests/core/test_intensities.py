"""Contrast that means the same in scans of any."""

import jax.numpy as jnp
import numpy as np

from jaxmark.core.intensities import stretched


def volume(seed=0):
    return np.random.default_rng(seed).gamma(2.0, 100.0, (1, 24, 20, 16, 1)).astype(np.float32)


def test_percentiles_of_what_is_seen_become_0_and_1():
    image = volume()
    image[:, 12:] = 0.0
    found = np.asarray(stretched(jnp.asarray(image)))
    seen = found[:, :12:2, ::2, ::2]
    low, high = np.percentile(seen, [2, 99.5])
    assert abs(low) < 0.02 and abs(high - 1) < 0.05
    assert found.min() >= -2 and found.max() <= 2


def test_scale_and_offset_of_a_scan_do_not_matter():
    image = volume()
    other = np.asarray(stretched(jnp.asarray(3.5 * image - 1000)))
    np.testing.assert_allclose(other, stretched(jnp.asarray(image)), atol=1e-3)


def test_a_constant_volume_has_no_nan():
    assert np.isfinite(np.asarray(stretched(jnp.full((2, 8, 8, 8, 1), 7.0)))).all()
