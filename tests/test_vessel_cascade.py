"""The cascade's presets are experiments that fit their volumes."""

import pytest

from experiments import vessel_cascade
from jaxmark.config import from_json, to_json, validate
from jaxmark.methods.method import Task
from jaxmark.registry import METHODS, PHANTOMS


@pytest.mark.parametrize("preset", ["paper", "small", "tiny", "aorta", "aorta_small", "aorta_tiny"])
def test_presets_fit(preset, tmp_path):
    experiment = validate(vessel_cascade.get_config(preset))
    data = experiment.data
    scheme = experiment.phantom.scheme
    task = Task(scheme, data.crop, data.margins, data.spacing_mm, experiment.augment)
    assert [phase.name for phase in experiment.method.build(task).phases] == ["coarse", "fine"]
    assert from_json(to_json(experiment), METHODS | PHANTOMS, tmp_path) == experiment


def test_the_paper_s_settings():
    experiment = vessel_cascade.get_config("paper")
    method, phantom = experiment.method, experiment.phantom
    assert (method.factor, method.patch, method.refine_batch) == (4, 64, 4)
    assert (method.steps, method.refine_steps) == (11_250, 45_000)
    assert (method.weights, method.refine) == ("prediction", "displacement")
    assert experiment.data.crop == (512,) * 3 and (phantom.train, phantom.test) == (75, 40)


def test_the_paper_s_aortas():
    experiment = vessel_cascade.get_config("aorta")
    phantom = experiment.phantom
    assert experiment.method.factor == 2 and len(phantom.scheme.landmarks) == 9
    assert (phantom.train, phantom.test, phantom.spacing_mm) == (25, 23, (0.71, 0.71, 0.81))


def test_other_presets_are_refused():
    with pytest.raises(ValueError, match="there is no preset 'huge'"):
        vessel_cascade.get_config("huge")
