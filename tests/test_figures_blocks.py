"""Tables of measurements in pages: read, written between markers, and up to date."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import figures
from jaxmark.system.errors import InputError

GOOD: dict[str, Any] = {
    "schema_version": 1,
    "title": "Step times",
    "command": "python -m experiments.benchmarks.run",
    "machine": "2 cores of a Zen 4",
    "versions": "jax 0.10.2",
    "date": "2026-11-29",
    "commit": "ff49293",
    "columns": ["volume", "ms"],
    "rows": [["48 x 40 x 24", 56.8], ["a | b", 315]],
}
PAGE = "# Speed\n\n<!-- figures: speed -->\nold\n<!-- /figures -->\n\nThe end.\n"
FILLED = """# Speed

<!-- figures: speed -->
| volume | ms |
|---|---|
| 48 x 40 x 24 | 56.8 |
| a \\| b | 315 |

`python -m experiments.benchmarks.run` on 2 cores of a Zen 4, 2026-11-29; jax 0.10.2.
<!-- /figures -->

The end.
"""


def project(root: Path, page: str = PAGE, **changes: Any) -> Path:
    """A project of one page and one table."""
    folder = root / figures.FOLDER
    folder.mkdir(parents=True)
    tree = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (folder / "speed.json").write_text(json.dumps(tree), "utf-8")
    (root / "docs").mkdir()
    (root / "docs" / "speed.md").write_text(page, "utf-8")
    (root / "README.md").write_text("# Project\n", "utf-8")
    return root


def test_pages_of_the_project_hold_the_measurements() -> None:
    assert not figures.stale(figures.ROOT), "run `python -m experiments.figures`"


def test_a_block_is_written_once(tmp_path: Path) -> None:
    root = project(tmp_path)
    new = figures.stale(root)
    assert new == {Path("docs/speed.md"): FILLED}
    (root / "docs" / "speed.md").write_text(FILLED, "utf-8")
    assert not figures.stale(root)


def test_the_command_writes_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(tmp_path)
    monkeypatch.setattr(figures, "ROOT", root)
    monkeypatch.setattr("sys.argv", ["figures", "--check"])
    with pytest.raises(SystemExit) as caught:
        figures.main()
    assert caught.value.code == 1 and "differs" in capsys.readouterr().out
    assert (root / "docs" / "speed.md").read_text("utf-8") == PAGE
    monkeypatch.setattr("sys.argv", ["figures"])
    figures.main()
    assert (root / "docs" / "speed.md").read_text("utf-8") == FILLED
    monkeypatch.setattr("sys.argv", ["figures", "--check"])
    figures.main()


def test_note_stands_between_table_and_command(tmp_path: Path) -> None:
    root = project(tmp_path, note="Few repeats.")
    assert "315 |\n\nFew repeats.\n\n`python" in figures.stale(root)[Path("docs/speed.md")]


def test_index_lists_tables_by_page(tmp_path: Path) -> None:
    index = "<!-- figures: index -->\n<!-- /figures -->\n"
    root = project(tmp_path, PAGE + index, takes="3 minutes")
    hidden = {**GOOD, "title": "Hidden"}
    (root / figures.FOLDER / "a.json").write_text(json.dumps(hidden), "utf-8")
    text = figures.stale(root)[Path("docs/speed.md")].split("<!-- figures: index -->\n")[1]
    page, others = text.split("**On no page**")
    command = "`python -m experiments.benchmarks.run`"
    made = "(3 minutes on 2 cores of a Zen 4, 2026-11-29, commit ff49293)"
    assert page == f"**[speed.md](speed.md)**\n\n- Step times: {command} {made}\n\n"
    assert f"- Hidden: {command}" in others


@pytest.mark.parametrize(
    ("page", "fragment"),
    [
        ("<!-- figures: sped -->\n<!-- /figures -->\n", "line 1: there is no experiments/results"),
        ("\n<!-- figures: speed -->\n", "line 2: the block 'speed' has no line"),
        ("<!-- figures: speed -->\n<!-- figures: speed -->\n", "line 1: the block 'speed' has no"),
        ("<!-- /figures -->\n", "line 1: <!-- /figures --> ends no block"),
    ],
)
def test_bad_markers_are_refused(tmp_path: Path, page: str, fragment: str) -> None:
    with pytest.raises(InputError, match="speed.md") as caught:
        figures.stale(project(tmp_path, page))
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "fragment"),
    [
        ("schema_version", 2, "schema version 2"),
        ("title", None, "has no field 'title'"),
        ("command", "", "'command' is empty"),
        ("machine", 3, "'machine' is not a text of one line"),
        ("note", "a\nb", "'note' is not a text of one line"),
        ("date", "29.11.2026", "'date' is '29.11.2026'"),
        ("commit", "HEAD", "'commit' is 'HEAD'"),
        ("columns", [], "'columns' is not a list of names"),
        ("rows", [["48 x 40 x 24"]], "row 1 has 1 cells for 2 columns"),
        ("rows", [["a", True]], "row 1 is not a list of texts"),
        ("rows", {}, "'rows' is not a list of rows"),
        ("color", "red", "unknown field 'color'"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, field: str, value: Any, fragment: str) -> None:
    with pytest.raises(InputError, match="speed.json") as caught:
        figures.stale(project(tmp_path, **{field: value}))
    assert fragment in str(caught.value)
