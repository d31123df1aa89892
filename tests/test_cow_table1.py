"""The rows of the table as configs: what differs between them is what the paper changes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cow_table1
from jaxmark.config import to_json, validate
from jaxmark.core.anatomy import COW19, scheme_of
from jaxmark.methods.method import Task
from jaxmark.system.files import read_json
from jaxmark.training.records import read_records


def differences(row, other="D-MRA-CTA-dagger"):
    a, b = (to_json(cow_table1.get_config(f"tiny/{name}")) for name in (row, other))
    found = {}
    for part in a:
        if isinstance(a[part], dict):
            names = set(a[part]) | set(b[part])
            found |= {n: a[part].get(n) for n in names if a[part].get(n) != b[part].get(n)}
    return found


@pytest.mark.parametrize("size", cow_table1.SIZES)
@pytest.mark.parametrize("row", [*cow_table1.ROWS, *cow_table1.EXTRA])
def test_every_row_is_a_valid_experiment(size, row):
    validate(cow_table1.get_config(f"{size}/{row}"))


@pytest.mark.parametrize("size", cow_table1.SIZES)
@pytest.mark.parametrize("row", cow_table1.BASELINES)
def test_other_papers_networks_fit_the_volumes(size, row):
    experiment = cow_table1.get_config(f"{size}/{row}")
    other = cow_table1.get_config(f"{size}/D-MRA")
    for part in ("data", "phantom", "augment", "train", "evaluate", "predict", "seed"):
        assert getattr(experiment, part) == getattr(other, part), part
    data = experiment.data
    task = Task(
        scheme=scheme_of(COW19.landmarks),
        crop=data.crop,
        margin=data.margins,
        spacing_mm=data.spacing_mm,
        augment=experiment.augment,
    )
    assert experiment.method.build(task).phases
    # A command line that overrides a field changes this experiment alone.
    experiment.method.steps = 1
    assert cow_table1.get_config(f"{size}/{row}").method.steps > 1


def test_rows_differ_in_what_the_paper_changes():
    assert differences("D-MRA-CTA") == {"positions": False}
    assert differences("D-MRA-dagger") == {"real": "images"}
    assert differences("D-MRA") == {"real": "images", "positions": False}
    assert differences("75%") == {"train_fraction": 0.75}
    assert differences("50%") == {"train_fraction": 0.5}
    assert differences(cow_table1.REAL) == {"unpaired_align": "rigid"}


@pytest.mark.parametrize("size", cow_table1.SIZES)
def test_the_baseline_is_the_same_generator_trained_as_long(size):
    base = cow_table1.get_config(f"{size}/Baseline").method
    ours = cow_table1.get_config(f"{size}/D-MRA-CTA-dagger").method
    assert base.steps == ours.steps + ours.adversarial_steps
    for field in dataclasses.fields(base):
        if field.name != "steps":
            assert getattr(base, field.name) == getattr(ours, field.name), field.name


@pytest.mark.parametrize("preset", ["small", "small/D-CTA", "huge/D-MRA"])
def test_other_rows_and_sizes_are_refused(preset):
    with pytest.raises(ValueError, match="there is no preset"):
        cow_table1.get_config(preset)


def test_each_row_is_trained_in_folders_of_its_seeds(tmp_path):
    row = cow_table1.TABLE.row("small", "75%", ["0", "7"], tmp_path, "--config.train.batch=2")
    assert (row.name, row.config) == ("75%", "experiments/cow_table1.py:small/75%")
    assert row.homes == {"0": tmp_path / "75%-0", "7": tmp_path / "75%-7"}
    assert row.overrides == ["--config.train.batch=2"]


def run(*arguments):
    command = [
        sys.executable,
        "-m",
        "experiments.cow_table1",
        "--preset=tiny",
        *map(str, arguments),
    ]
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        cwd=Path(__file__).parents[1],
        timeout=400,
    )


@pytest.mark.slow
def test_rows_are_run_once_and_the_table_is_written(tmp_path):
    first = run("--rows=D-MRA", f"--workdir={tmp_path}")
    assert first.returncode == 0, first.stderr
    tree = read_json(tmp_path / "table.json", 1)
    assert [row["label"] for row in tree["rows"]] == ["D-MRA"]
    assert tree["rows"][0]["published"]["mre_mm"] == 1.88
    assert "Published:" in first.stdout and (tmp_path / "index.html").is_file()
    log = read_records(tmp_path / "D-MRA-0" / "logs" / "metrics.jsonl")
    assert {r["phase"] for r in log} == {"pretrain", "adversarial"}
    assert {"real_accuracy", "fake_accuracy", "discriminator_loss"} <= set(log[-2])
    # What a person sees of a GAN is in its report.
    assert "data:image/svg" in (tmp_path / "D-MRA-0" / "report" / "index.html").read_text("utf-8")

    written = (tmp_path / "D-MRA-0" / "evaluation" / "summary.json").stat().st_mtime_ns
    again = run("--rows=D-MRA", f"--workdir={tmp_path}")
    assert again.returncode == 0 and "done before" in again.stdout
    assert (tmp_path / "D-MRA-0" / "evaluation" / "summary.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows=D-CTA"], "error: --rows: 'D-CTA' is not one of Baseline, D-MRA"),
        (["--seeds=a"], "error: --seeds: 'a' is not whole numbers"),
        (["extra"], "error: command line: unexpected argument 'extra'"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_a_line(tmp_path, arguments, message):
    result = run(*arguments, f"--workdir={tmp_path}")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(message)
    assert not list(tmp_path.iterdir())
