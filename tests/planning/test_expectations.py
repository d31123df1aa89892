"""What a plan says of the error to expect, where the time is enough and where it is not."""

from types import SimpleNamespace

import pytest

from jaxmark.planning import plan
from jaxmark.planning.forecast import forecast


@pytest.mark.parametrize(
    ("usual_minutes", "said", "helps"),
    [
        (76.2, "a detector from 8 cases, trained for 77 minutes: about", "time: with --minutes=77"),
        (None, "a detector from 8 cases: about", "more cases: with 16 for training"),
    ],
)
def test_the_range_is_that_of_enough_training(usual_minutes, said, helps):
    place = SimpleNamespace(
        survey=SimpleNamespace(unit="mm", train=("case",) * 8, planar=False), poses=None, spread=4.7
    )
    fitted = SimpleNamespace(usual_minutes=usual_minutes, minutes=1.0, bytes=2e8)
    device = SimpleNamespace(bytes=25e9)
    expected = forecast(4.7, 8, 0.5)
    lines = plan._expectations(place, expected, fitted, device, 0.5)
    between = f"{expected.low:.2g} to {expected.high:.2g} mm"
    assert lines[0].startswith(f"mean position: 4.7 mm off; {said} {between}")
    assert lines[-1].startswith(f"most help: {helps}")
