"""What error to expect: rough, but in order."""

import numpy as np
import pytest

from jaxmark.planning.forecast import LEARNED, forecast, learned_share


def test_the_share_is_what_was_measured_and_falls_with_the_cases():
    for cases, share in LEARNED:
        assert learned_share(cases) == pytest.approx(share)
    shares = [learned_share(cases) for cases in (1, 8, 12, 30, 100, 120, 5000)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("floor", [0.02, 1.0, 30.0])
def test_more_cases_and_a_lower_floor_never_raise_what_is_expected(floor):
    found = [forecast(floor, cases, 0.5) for cases in (2, 8, 20, 60, 120, 1000)]
    for name in ("low", "high"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(values, reverse=True)
    for one in found:
        assert one.low_with_more <= one.low and one.high_with_more <= one.high <= floor
        halved = forecast(floor / 2, 20, 0.5)
        assert halved.high <= forecast(floor, 20, 0.5).high


def test_twice_the_cases_is_what_a_cohort_of_twice_the_size_expects():
    now, then = forecast(5.0, 20, 0.1), forecast(5.0, 40, 0.1)
    assert (now.low_with_more, now.high_with_more) == (then.low, then.high)


def test_nothing_is_expected_far_under_a_voxel():
    assert forecast(10.0, 120, 4.0).low == pytest.approx(1.0)
    assert np.isclose(forecast(10.0, 120, 1e-6).low, 10 * 0.15 / 1.6)
