"""A plan as an experiment file: it makes the plan's experiment, and looks as people write it."""

import dataclasses
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from jaxmark.config import Appearance, Augment, Data, Evaluate, Experiment, Stream, Train
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.planning.draft import Decision, Plan
from jaxmark.planning.experiment_file import experiment_file

QUOTES = ('it\'s "deep"', "it's", '"so"', "two \" and one ''", "back\\slash", "Ä\tü", "", "\u202e")
LANDMARKS = (*QUOTES, *(f"landmark number {number}" for number in range(30)))
EXPERIMENTS = {
    "as everywhere": Experiment(HeatmapRegression(), name="plain"),
    "a cascade": Experiment(
        Cascade(steps=700, widths=(16, 32, 64), sides=(0.5,), shared=True),
        name='a "b" c',
        seed=3,
        data=Data(root="/data/it's", spacing_mm=(0.123, 1e-05, 2.0), crop=(64, 64, 32)),
        augment=Augment(rotation_degrees=10.0),
        train=Train(batch=3),
        evaluate=Evaluate(sdr_thresholds_mm=(0.25, 1.0)),
    ),
    "many landmarks": Experiment(
        HeatmapRegression(), name="long", data=Data(landmarks=LANDMARKS, segments=("one",))
    ),
    "parts within parts": Experiment(
        HeatmapRegression(),
        name="drawn",
        augment=Augment(appearance=Appearance(drawn=True, voxel_mm=(0.5, 2.0))),
        stream=Stream(on=True),
    ),
}
# A docstring or a line would end at some of these.
FINDINGS = (
    'left out: \'"""\' (1), "\\"',
    "two\nlines\rof \x0c text",
    "a finding that is too long for a line " * 5,
    "",
)
DECISIONS = (
    Decision("data.spacing_mm", (1.0, 1.0, 1.0), "their own, 1 mm\nand a line"),
    Decision("data.landmarks", LANDMARKS, ""),
    Decision("augment.appearance.drawn", True, "set by you"),
    Decision("train.batch", 3, "a reason that is too long for one line " * 4),
)


def source_of(name: str) -> str:
    return experiment_file(Plan(EXPERIMENTS[name], DECISIONS, FINDINGS, FINDINGS[:1], {}))


def made(source: str, preset: str = "") -> Experiment:
    names: dict = {}
    exec(compile(source, "plan.py", "exec"), names)
    return names["get_config"](preset)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_file_makes_the_plan_s_experiment(name):
    assert made(source_of(name)) == EXPERIMENTS[name]


def test_there_are_no_presets():
    with pytest.raises(ValueError, match="there is no preset 'small'"):
        made(source_of("a cascade"), "small")


def test_reasons_and_findings_are_comments():
    lines = source_of("a cascade").splitlines()
    at = lines.index("            spacing_mm=(0.123, 1e-05, 2.0),")
    assert lines[at - 1] == "            # Their own, 1 mm and a line."
    assert lines[lines.index("            batch=3,") - 1].endswith(".")
    drawn = source_of("parts within parts").splitlines()
    at = drawn.index("                drawn=True,")
    assert drawn[at - 1] == "                # Set by you."
    assert any(line.startswith("# two lines of") for line in lines)


def test_what_is_as_everywhere_is_left_out():
    source = source_of("as everywhere")
    assert "Data(" not in source and "method=HeatmapRegression()," in source
    assert "HeatmapRegression(alpha" not in source


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_file_is_as_ruff_leaves_it(name):
    if not find_spec("ruff"):
        pytest.skip("ruff is not installed")
    root = Path(__file__).parents[2]
    for command in (["check"], ["format", "--diff"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename=plan.py", "-"],
            input=source_of(name),
            capture_output=True,
            encoding="utf-8",
            cwd=root,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_an_experiment_of_every_changed_part_names_all_its_classes():
    experiment = dataclasses.replace(EXPERIMENTS["parts within parts"], train=Train(batch=2))
    source = experiment_file(Plan(experiment, (), (), (), {}))
    assert made(source) == experiment
    assert "from jaxmark.config import Appearance, Augment, Experiment, Stream, Train\n" in source
