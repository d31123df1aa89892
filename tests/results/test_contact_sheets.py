"""Contact sheets of small and of large cohorts."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxmark.data.cases import PreparedCase, load_case, save_case
from jaxmark.results import contact_sheet
from jaxmark.results.figures import pictures


@pytest.fixture
def prepared(tmp_path):
    """What is used of a prepared cohort: seven cases, the sixth of them doubtful."""
    cases = {}
    for i in range(7):
        points = np.full((2, 3), 4.0 + i / 10)
        case = PreparedCase(
            f"c{i}", tmp_path / f"c{i}", np.eye(4), points, np.ones(2, bool), np.zeros(2, bool)
        )
        save_case(case, np.random.default_rng(i).normal(size=(10, 9, 8)), tmp_path)
        cases[case.name] = load_case(case.folder)
    splits = {"train": tuple(cases)[:5], "val": tuple(cases)[5:], "test": ()}
    return SimpleNamespace(
        cases=cases,
        splits=splits,
        frame=SimpleNamespace(grid_to_common=np.eye(4)),
        doubts=lambda: {"c5": ["turned"]},
        table=lambda: "the table\n",
        split=lambda name: [cases[case] for case in splits[name]],
    )


def test_of_many_cases_the_doubtful_and_the_first_are_drawn(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "_CASES_A_SHEET", 2)
    monkeypatch.setattr(contact_sheet, "MOST_CASES", 4)
    drawn = []

    def keep(tiles, spacing_mm, marks, title):
        drawn.append(([tile.title for tile in tiles], title))
        return b""

    monkeypatch.setattr(pictures, "contact_sheet", keep)
    sheets = contact_sheet.write_contact_sheets(prepared, tmp_path, everything=False)
    assert [path.name for path in sheets] == ["contact_sheet_1.png", "contact_sheet_2.png"]
    assert [titles for titles, _ in drawn] == [["c5", "c0"], ["c1", "c2"]]
    assert drawn[0][1].startswith("4 of 7 prepared cases, sheet 1 of 2")
    # They are there now; all of them are more.
    assert contact_sheet.write_contact_sheets(prepared, tmp_path, everything=False) == sheets
    assert len(drawn) == 2
    assert len(contact_sheet.write_contact_sheets(prepared, tmp_path, everything=True)) == 4
    assert drawn[2][1].startswith("7 prepared cases, sheet 1 of 4")


def test_several_processes_draw_the_same_sheets(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "_CASES_A_SHEET", 2)
    alone = contact_sheet.write_contact_sheets(prepared, tmp_path / "a", workers=1)
    shared = contact_sheet.write_contact_sheets(prepared, tmp_path / "b", workers=2)
    assert [p.read_bytes() for p in alone] == [p.read_bytes() for p in shared]
    assert len(alone) == 4
