"""Plans on the command line: a tiny cohort is planned, trained and reported, and refusals."""

import json
import runpy

import pytest
from running import jaxmark_copies
from small_cohorts import NAMES, write_small_cohort

from jaxmark.config import to_json

AUTO = "--config=experiments/auto.py"
# What is tested is not what a network learns, and registrations are tried elsewhere.
QUICK = ("method.steps=2", "method.widths=(4,4,4)", "method.head=0", "train.batch=2")
QUICK += ("data.register=none", "data.crop=(16,16,16)", "evaluate.viewer=False")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of all runs, and the finished commands by name; all of them in one process."""
    folder = tmp_path_factory.mktemp("planned")
    write_small_cohort(folder / "heads")
    root = f"--config.data.root={folder / 'heads'}"
    usual = ["--nohuge_pages", f"--config.data.cache={folder / 'cache'}", "--config.data.workers=1"]
    planned = [AUTO, root, "--minutes=0.05", *(f"--config.{field}" for field in QUICK)]
    work, file = f"--workdir={folder / 'work'}", folder / "work" / "plan.py"
    commands = {
        "plan": [*planned, "--mode=plan", work],
        "run": [*planned, work],
        "file": [f"--config={file}", f"--workdir={folder / 'again'}", "--mode=prepare"],
        "check": [AUTO, root, "--mode=check", f"--workdir={folder / 'checked'}"],
        "foreign minutes": ["--config=experiments/cow.py:tiny", "--minutes=5"],
        "foreign plan": ["--config=experiments/cow.py:tiny", "--mode=plan"],
        "no minutes": [AUTO, root, "--minutes=0"],
        "no folder": [AUTO, f"--config.data.root={folder / 'nowhere'}", "--mode=plan"],
        "bad value": [AUTO, root, "--config.data.register=rigidly", "--mode=plan"],
    }
    elsewhere = {
        name: [*command, f"--workdir={folder / 'nothing'}"]
        for name, command in commands.items()
        if not any(argument.startswith("--workdir") for argument in command)
    }
    results = jaxmark_copies([[*c, *usual] for c in (commands | elsewhere).values()])
    return folder, dict(zip(commands, results, strict=True))


def ended_well(result) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_plan_is_printed_with_its_reasons_and_kept(done):
    folder, results = done
    text = ended_well(results["plan"])
    for fragment in (
        "5 scans with landmarks, 0 without; 5 landmarks; splits: 4 train, 1 val, 0 test",
        "20 x 20 x 16 voxels of 1.5 x 1.5 x 1.5 mm",
        "set by you",
        "most help: ",
        f"--config={folder / 'work' / 'plan.py'} --workdir=ANOTHER_WORKDIR",
    ):
        assert fragment in text
    tree = json.loads((folder / "work" / "plan.json").read_text("utf-8"))
    values = {decision["field"]: decision["value"] for decision in tree["decisions"]}
    assert values["method.steps"] == 2 and values["train.batch"] == 2
    assert values["data.test_fraction"] == 0.0
    assert all(decision["reason"] for decision in tree["decisions"] if decision["value"] != "none")


def test_the_same_command_without_the_mode_trains_as_planned_and_reports_why(done):
    folder, results = done
    text = ended_well(results["run"])
    assert "plan.json" in text and "timing a step" not in text
    page = (folder / "work" / "report" / "index.html").read_text("utf-8")
    assert ">Plan<" in page and "set by you" in page and "most help: " in page
    assert all(name in page for name in NAMES)
    config = json.loads((folder / "work" / "config.json").read_text("utf-8"))
    planned = json.loads((folder / "work" / "plan.json").read_text("utf-8"))["experiment"]
    assert {name: config[name] for name in planned} == planned


def test_the_plan_s_file_is_an_experiment_like_any_other(done):
    folder, results = done
    ended_well(results["file"])
    assert (folder / "again" / "preparation" / "frame.json").is_file()
    assert not (folder / "again" / "plan.json").exists()
    made = runpy.run_path(str(folder / "work" / "plan.py"))["get_config"]()
    planned = json.loads((folder / "work" / "plan.json").read_text("utf-8"))["experiment"]
    assert to_json(made) == planned


def test_annotations_are_checked_without_a_plan(done):
    folder, results = done
    assert "check" in ended_well(results["check"])
    assert (folder / "checked" / "check").is_dir()
    assert not (folder / "checked" / "plan.json").exists()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("foreign minutes", "--minutes: goes with --config=experiments/auto.py"),
        (
            "foreign plan",
            "--config: plans nothing: name experiments/auto.py, or an experiment with `wishes`",
        ),
        ("no minutes", "--minutes: 0.0 is not a positive number"),
        ("no folder", "config.data.root: there is no folder"),
        ("bad value", "config.data.register: 'rigidly' is not"),
    ],
)
def test_a_mistake_is_one_line(done, name, line):
    folder, results = done
    assert results[name].returncode == 1
    errors = [text for text in results[name].stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and line in errors[0]
    assert "Traceback" not in results[name].stderr
    assert not (folder / "nothing").exists()
