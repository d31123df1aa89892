"""The plan in a work dir: the same request gives the same plan, and a trained one stays."""

import json
from functools import partial

import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Data, Experiment
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.planning import kept
from jaxmark.planning.draft import Decision, Plan, Wishes
from jaxmark.training.checkpoints import FOLDER


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Plans for a folder; what each is called with, and what is planned, are in lists."""
    asked = []

    def make_plan(experiment, given, wishes, mesh):
        asked.append((sorted(given), wishes))
        made = Experiment(
            HeatmapRegression(steps=7, widths=(8, 16, 32)), name="auto", data=experiment.data
        )
        decisions = (
            Decision("data.crop", made.data.crop, "a reason"),
            Decision("data.landmarks", ("tip", "it's"), ""),
            Decision("augment.scale", 0.1, "sizes"),
        )
        return Plan(made, decisions, ("found",), ("expected",))

    monkeypatch.setattr(kept, "make_plan", make_plan)

    def planned(minutes=None, anew=False, free=(), **fields):
        data = Data(root=str(tmp_path / "data"), **fields)
        given = ["data.root", *(f"data.{name}" for name in fields), *free]
        experiment = Experiment(HeatmapRegression(), name="auto", data=data)
        experiment.predict.split = "val" if "predict.split" in free else ""
        wishes = Wishes(minutes=minutes)
        return kept.plan_in(tmp_path / "work", experiment, given, wishes, anew=anew)

    return planned, asked, tmp_path / "work"


def test_the_same_request_gives_the_same_plan_without_planning_anew(work):
    planned, asked, folder = work
    first = planned(20.0, landmarks=("tip", "it's"), crop=(16, 32, 16))
    assert len(asked) == 1
    written = (folder / "plan.json").read_bytes()
    assert planned(20.0, landmarks=("tip", "it's"), crop=(16, 32, 16)) == first
    assert len(asked) == 1 and (folder / "plan.json").read_bytes() == written
    assert first.experiment.method.widths == (8, 16, 32)
    assert first.experiment.data.crop == (16, 32, 16)
    assert first.findings == ("found",) and first.expectations == ("expected",)
    assert [decision.reason for decision in first.decisions] == ["a reason", "", "sizes"]
    assert "steps=7" in (folder / "plan.py").read_text("utf-8")


def test_another_request_is_planned_anew(work):
    planned, asked, _ = work
    planned()
    planned(20.0)
    planned(20.0, crop=(16, 16, 16))
    planned(20.0, crop=(16, 16, 32))
    assert len(asked) == 4


def test_the_plan_mode_plans_anew_until_a_model_is_trained(work):
    planned, asked, folder = work
    planned()
    planned(anew=True)
    assert len(asked) == 2
    (folder / FOLDER).mkdir()
    planned(anew=True)
    assert len(asked) == 2


def test_fields_that_no_plan_depends_on_may_change(work):
    planned, asked, _ = work
    assert planned().experiment.predict.split == ""
    assert planned(free=("predict.split",)).experiment.predict.split == "val"
    assert len(asked) == 1


def test_a_model_that_was_planned_otherwise_stays(work):
    planned, asked, folder = work
    planned(20.0, crop=(16, 16, 16))
    (folder / FOLDER).mkdir()
    planned(20.0, crop=(16, 16, 16))
    # What is not stated again is as it was.
    assert planned().experiment.data.crop == (16, 16, 16)
    for other in (
        partial(planned, 30.0, crop=(16, 16, 16)),
        partial(planned, 20.0, crop=(32, 32, 32)),
    ):
        refused(other, f"{folder}: holds a model whose plan had", "not ", "use another --workdir")
    assert len(asked) == 1


def test_a_model_without_a_plan_is_refused(work):
    planned, _, folder = work
    (folder / FOLDER).mkdir(parents=True)
    refused(planned, f"{folder}: holds a model", "use another --workdir")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda tree: "{", "is not JSON"),
        (lambda tree: json.dumps({**tree, "schema_version": 99}), "schema version 99"),
        (
            lambda tree: json.dumps(
                {**tree, "experiment": {**tree["experiment"], "method": {"class": "Nothing"}}}
            ),
            "Nothing",
        ),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_by_its_file(work, change, fragment):
    planned, _, folder = work
    planned()
    path = folder / "plan.json"
    path.write_text(change(json.loads(path.read_text("utf-8"))), "utf-8")
    refused(planned, path, fragment)


def test_a_plan_holds_no_number_that_json_lacks(work):
    planned, _, folder = work
    planned(20.0)

    def no_such(constant):
        raise AssertionError(constant)

    tree = json.loads((folder / "plan.json").read_text("utf-8"), parse_constant=no_such)
    assert tree["schema_version"] == 1 and np.isclose(tree["request"]["wishes"]["minutes"], 20)
