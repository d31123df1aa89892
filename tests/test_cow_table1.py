"""The rows of the table as configs: what differs between them is what the paper changes."""

import dataclasses

import pytest

from experiments import cow_table1
from jaxmark.config import to_json, validate


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
