"""A model of scans of any contrast: little evidence alone is doubted, next to none is refused."""

import numpy as np
import pytest

from jaxmark.inference.verdict import little_evidence, verdict

USUAL = np.random.default_rng(0).normal(1.0, 0.4, (18, 1)) + np.linspace(-1, 1, 19)


def judged(mean, **changes):
    known = {"usual_evidence": USUAL, "usual": None, "shape": None, **changes}
    points, everywhere = np.zeros((19, 3)), np.ones(19, bool)
    evidence = mean + np.linspace(-1, 1, 19)
    return verdict(points, everywhere, everywhere, evidence, np.zeros(3), **known)


class Shape:
    """Nothing is unlikely."""

    def unlikely_whole(self, points):
        return ""


@pytest.mark.parametrize("mean, refused", [(1.0, False), (-0.7, False), (-2.5, True)])
def test_next_to_nothing_is_refused(mean, refused):
    line, little = judged(mean, shape=Shape())
    assert bool(line) == refused
    assert bool(little) == (mean < 0)
    if refused:
        assert line.startswith("probably not such a scan") and f"evidence {mean:.2f}" in line


def test_little_evidence_is_a_line_before_it_is_a_refusal():
    spread = np.linspace(-1, 1, 19)
    assert little_evidence(0.9 + spread, USUAL) == ("", 0.0)
    line, times = little_evidence(-0.9 + spread, USUAL)
    assert "sees less of the landmarks" in line and 1 < times < 1.5
