"""Configs: what is refused, and what belongs to a trained model."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import refused

from experiments import cow
from jaxmark import trained
from jaxmark.config import Augment, Data, Experiment, Predict, Train, check_same, to_json
from jaxmark.config import validate as check
from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_json


def experiment(**changes):
    return Experiment(**{"method": HeatmapRegression(), "phantom": CirclePhantom(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": Data(crop=(8, 8))}, r"config.data.crop: \(8, 8\) is not three positive whole"),
        ({"data": Data(crop=(8, 8, 0))}, "config.data.crop"),
        ({"data": Data(spacing_mm=(1.0, -1.0, 1.0))}, "config.data.spacing_mm"),
        ({"data": Data(frame="lps")}, "config.data.frame: 'lps' is not one of"),
        ({"data": Data(intensity_percentiles=(90.0, 10.0))}, "config.data.intensity_percentiles"),
        ({"data": Data(val_fraction=0.6, test_fraction=0.4)}, "config.data.val_fraction"),
        ({"data": Data(margin=2)}, "config.augment.translation_voxels: 4 is more than"),
        ({"augment": Augment(noise=float("nan"))}, "config.augment.noise: nan"),
        ({"augment": Augment(scale=1.0)}, "config.augment: scale"),
        ({"train": Train(log_every=0)}, "config.train.log_every: 0"),
        ({"predict": Predict(decoder="mean")}, "config.predict.decoder: 'mean'"),
        ({"phantom": CirclePhantom(train=0)}, "config.phantom.train: 0"),
    ],
)
def test_impossible_values_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        check(experiment(**changes))


def test_the_config_is_json_and_names_its_method():
    tree = to_json(experiment())
    assert tree["method"]["class"] == "HeatmapRegression"
    assert json.loads(json.dumps(tree)) == tree


def test_a_model_belongs_to_its_method_data_and_seed_but_not_to_its_log():
    ours = experiment()
    saved = to_json(ours)
    same = dataclasses.replace(ours, train=Train(log_every=3), data=Data(cache="elsewhere"))
    check_same(saved, same, Path("work"))
    for changed, message in (
        ({"seed": 5}, "config.seed = 0, not 5"),
        ({"data": Data(margin=9)}, "config.data.margin = 8, not 9"),
        ({"method": HeatmapRegression(alpha=2.0)}, "config.method.alpha = 1000.0, not 2.0"),
        ({"phantom": None}, "config.phantom = "),
    ):
        with pytest.raises(InputError, match=message):
            check_same(saved, dataclasses.replace(ours, **changed), Path("work"))
    with pytest.raises(InputError, match="lacks 'method'"):
        check_same({}, ours, Path("work"))


@pytest.mark.parametrize("preset", ["paper", "small", "small_adversarial", "tiny"])
def test_an_experiment_comes_back_from_its_file(preset, tmp_path):
    experiment = cow.get_config(preset)
    write_json(tmp_path / "config.json", {"schema_version": 1, **to_json(experiment)})
    assert trained.get_config(str(tmp_path)) == experiment


def test_files_that_hold_no_experiment_are_named(tmp_path):
    path = tmp_path / "config.json"
    refused(lambda: trained.get_config(str(tmp_path)), tmp_path, "holds no trained model")
    write_json(path, {"schema_version": 1})
    refused(lambda: trained.get_config(str(tmp_path)), path, "is not the config of a run")
    tree = to_json(cow.get_config("tiny"))
    other = {**tree, "method": {**tree["method"], "class": "Unheard"}}
    write_json(path, {"schema_version": 1, **other})
    refused(lambda: trained.get_config(str(tmp_path)), path, "method 'Unheard'; --config has to")
    write_json(path, {"schema_version": 1, **tree, "train": {"no_such_field": 1}})
    refused(lambda: trained.get_config(str(tmp_path)), path, "no_such_field")
