"""Configs: what is refused, and what belongs to a trained model."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import refused

from experiments import cow
from jaxmark import trained
from jaxmark.config import (
    Appearance,
    Augment,
    Data,
    Experiment,
    Predict,
    Train,
    check_same,
    from_json,
    migrated,
    to_json,
)
from jaxmark.config import validate as check
from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.registry import METHODS, PHANTOMS
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
        ({"data": Data(folds=1)}, "config.data.folds: 1 leaves no cases for training"),
        ({"data": Data(fold=1)}, "config.data.fold: there is no fold 1: config.data.folds is 0"),
        ({"data": Data(folds=3, fold=3)}, "config.data.fold: there is no fold 3: they are 0 to 2"),
        ({"data": Data(margin=2)}, "config.augment.translation_voxels: 4 is more than"),
        ({"augment": Augment(noise=float("nan"))}, "config.augment.noise: nan"),
        ({"augment": Augment(scale=1.0)}, "config.augment: scale"),
        (
            {"augment": Augment(appearance=Appearance(box=1.5))},
            "config.augment.appearance.box: 1.5 is not between 0 and 1",
        ),
        (
            {"augment": Augment(appearance=Appearance(mra=0.8))},
            "config.augment.appearance.cta: and mra are together 1.1, more than all cases",
        ),
        (
            {"augment": Augment(appearance=Appearance(slab_mm=(30.0, 20.0)))},
            r"config.augment.appearance.slab_mm: 30.0, 20.0 is not a rising pair",
        ),
        (
            {"augment": Augment(noise=0.1, appearance=Appearance(drawn=True))},
            "config.augment.appearance.drawn: draws contrast and noise itself",
        ),
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


def stored(ours, *lacking):
    """The config as a version stored it that did not know some fields, named by their paths."""
    tree = to_json(ours)
    for path in lacking:
        part, name = path.split(".")
        del tree[part][name]
    return tree


def read(tree):
    return from_json(tree, METHODS | PHANTOMS, Path("work"))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("augment.flip", {"augment": Augment(flip=0.5)}),
        ("method.decay", {"method": HeatmapRegression(decay=0.25)}),
        # A tuple, which JSON has as a list.
        ("data.intensity_window", {"data": Data(intensity_window=(0.0, 500.0))}),
        ("phantom.pathology", {"phantom": CirclePhantom(pathology=0.5)}),
    ],
)
def test_a_field_that_an_older_config_lacks_has_its_default(field, changes):
    ours = experiment()
    old = stored(ours, field)
    check_same(old, ours, Path("work"))
    assert read(old) == ours
    part, name = field.split(".")
    value = to_json(ours)[part][name]
    with pytest.raises(InputError) as caught:
        check_same(old, experiment(**changes), Path("work"))
    other = to_json(experiment(**changes))[part][name]
    said = f"belongs to a run with config.{field} = {value}, not {other}; use another --workdir"
    assert str(caught.value) == f"work: {said}"


def test_an_older_config_s_phantom_is_the_first_one():
    ours = experiment(phantom=CirclePhantom(train=5))
    old = stored(ours, "phantom.class")
    check_same(old, ours, Path("work"))
    assert read(old) == ours
    refused(lambda: check_same(old, experiment(), Path("work")), "config.phantom.train = 5, not 70")
    # What is stored stays as it is, and what is new needs no translation.
    assert "class" not in old["phantom"]
    assert migrated(to_json(ours)) == to_json(ours)
    assert read(to_json(experiment(phantom=None))).phantom is None


@pytest.mark.parametrize("part", ["method", "data", "phantom", "augment", "train", "predict"])
def test_a_field_that_this_version_does_not_know_is_refused_by_name(part):
    tree = to_json(experiment())
    tree[part]["later"] = 1
    problem = f"has config.{part}.later, which this version does not know"
    refused(lambda: read(tree), "work: ", problem)
    # Where the user names the experiment himself, it is a difference as any other.
    if part in ("train", "predict"):
        check_same(tree, experiment(), Path("work"))
    else:
        refused(
            lambda: check_same(tree, experiment(), Path("work")),
            f"belongs to a run with config.{part}.later = 1, not None; use",
        )


def test_all_differences_are_named_at_once():
    old = stored(experiment(), "augment.flip")
    old["data"]["later"] = 1
    ours = experiment(augment=Augment(noise=0.5, flip=0.5), seed=3)
    with pytest.raises(InputError) as caught:
        check_same(old, ours, Path("work"))
    assert str(caught.value) == (
        "work: belongs to a run with config.data.later = 1, not None; "
        "config.augment.noise = 0.0, not 0.5; config.augment.flip = 0.0, not 0.5; "
        "config.seed = 0, not 3; use another --workdir"
    )


def test_a_config_of_a_phantom_that_is_not_known_is_refused_by_its_name():
    tree = to_json(experiment())
    tree["phantom"]["class"] = "Unheard"
    refused(lambda: read(tree), "is of the phantom 'Unheard'; --config has to name its file")
    # And it is not another one with the same fields.
    refused(
        lambda: check_same(tree, experiment(), Path("work")),
        "config.phantom.class = Unheard, not CirclePhantom",
    )


def test_experiment_files_find_the_first_phantom_where_it_was():
    from jaxmark.config import Phantom

    assert Phantom is CirclePhantom
    with pytest.raises(ImportError, match="Ghost"):
        from jaxmark.config import Ghost  # noqa: F401


def test_a_bend_that_could_fold_the_picture_is_refused():
    check(experiment(augment=Augment(elastic_mm=6.0, elastic_grid_mm=48.0)))
    refused(
        lambda: check(experiment(augment=Augment(elastic_mm=6.1, elastic_grid_mm=48.0))),
        "config.augment.elastic_mm: 6.1 is more than an eighth of elastic_grid_mm, 48.0",
    )


def test_settings_in_settings_are_completed_and_compared_field_by_field():
    ours = experiment(augment=Augment(appearance=Appearance(drawn=True)))
    tree = to_json(ours)
    assert read(tree) == ours
    # Stored before there was any appearance, and before it had all of its fields.
    old = stored(experiment(), "augment.appearance")
    assert read(old) == experiment()
    check_same(old, experiment(), Path("work"))
    refused(
        lambda: check_same(old, ours, Path("work")),
        "belongs to a run with config.augment.appearance.drawn = False, not True; use",
    )
    del tree["augment"]["appearance"]["gamma"]
    assert read(tree) == ours
    check_same(tree, ours, Path("work"))
    tree["augment"]["appearance"]["later"] = 1
    refused(lambda: read(tree), "has config.augment.appearance.later, which this version does not")
    refused(
        lambda: check_same(tree, ours, Path("work")),
        "belongs to a run with config.augment.appearance.later = 1, not None; use",
    )
