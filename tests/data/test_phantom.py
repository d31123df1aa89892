"""The synthetic cohort: what it says of itself must be in its voxels."""

import numpy as np

from jaxmark.config import Phantom
from jaxmark.core.geometry import apply_affine
from jaxmark.data import phantom
from jaxmark.data.landmarks import read_landmarks
from jaxmark.data.scans import read_scan


def test_a_case_is_a_function_of_seed_and_number():
    a, b = phantom.make_case(3, 5), phantom.make_case(3, 5)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    for other in (phantom.make_case(3, 6), phantom.make_case(4, 5)):
        assert not np.array_equal(a[0], other[0])
        assert not np.allclose(a[2], other[2])


def test_landmarks_lie_in_the_lumen_on_their_own_side():
    for number in range(6):
        voxels, ijk_to_lps, landmarks = phantom.make_case(0, number)
        ijk = np.rint(apply_affine(np.linalg.inv(ijk_to_lps), landmarks)).astype(int)
        for i, j, k in ijk:
            assert voxels[i, j, k] > 3 * np.median(voxels)
        # LPS: x grows towards the patient's left.
        trunk, right_1, right_2, left_1, left_2 = landmarks
        assert max(right_1[0], right_2[0]) < trunk[0] < min(left_1[0], left_2[0])


def test_the_files_say_what_was_made(tmp_path):
    phantom.write_cohort(tmp_path, Phantom(train=1, val=1, test=0, seed=2))
    voxels, ijk_to_lps, landmarks = phantom.make_case(2, 1)
    scan = read_scan(tmp_path / "images" / "phantom-001.nii.gz")
    np.testing.assert_array_equal(scan.voxels, voxels)
    np.testing.assert_allclose(scan.ijk_to_lps, ijk_to_lps, atol=1e-5)
    found = read_landmarks(tmp_path / "landmarks" / "phantom-001.mrk.json")
    assert tuple(found) == phantom.LANDMARKS
    np.testing.assert_array_equal(list(found.values()), landmarks)
