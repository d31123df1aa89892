"""Why an experiment is as it is: what `planning` wrote into the work dir, for the report."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from jaxmark.results.page import table
from jaxmark.system.files import read_json

# `planning.kept` writes it.
FILE = "plan.json"
SCHEMA_VERSION = 1


def plan_section(workdir: Path, config: Mapping[str, Any]) -> str:
    """HTML; empty where the run's `config` is not that of a plan in the work dir."""
    path = workdir / FILE
    if not path.exists():
        return ""
    tree = read_json(path, SCHEMA_VERSION)
    own = {name: value for name, value in config.items() if name != "schema_version"}
    # Folds of a cross-validation differ from their plan by their number alone.
    if not _alike(tree["experiment"], own):
        return ""
    rows = [[d["field"], _shown(d["value"]), d["reason"]] for d in tree["decisions"]]
    found, expected = (
        "".join(f"<li>{escape(line)}</li>" for line in tree[name])
        for name in ("findings", "expectations")
    )
    return (
        f"<p>What was found in the folder:</p><ul>{found}</ul>\n"
        f"{table(['setting', 'value', 'reason'], rows)}\n"
        f"<p>What was expected before training:</p><ul>{expected}</ul>"
    )


def _alike(planned: Mapping[str, Any], used: Mapping[str, Any]) -> bool:
    parts = ("data", "method", "augment")
    free = {"fold", "folds", "cache", "workers", "root"}
    return all(
        {k: v for k, v in planned[part].items() if k not in free}
        == {k: v for k, v in used[part].items() if k not in free}
        for part in parts
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
