"""Your folder: what it holds decides registration, network, steps and everything else.

    python -m jaxmark.main --config=experiments/auto.py --config.data.root=FOLDER

FOLDER holds scans or pictures with landmarks, in any layout that jaxmark reads (docs/own_data.md).
The plan is printed with its reasons, and lies in the work dir: `plan.json`, and `plan.py`, an
experiment file to edit and run. `--mode=plan` stops there.

Every field can still be set (`--config.data.register=rigid`): it is kept, and the rest is planned
around it. `--minutes=20` says how long training may take, `--target_mm=1` which error suffices.

Presets: none, `heatmap` and `cascade`, which name the method.
"""

from jaxmark.config import Experiment
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.planning.draft import Wishes

METHODS = {"": HeatmapRegression, "heatmap": HeatmapRegression, "cascade": Cascade}


def get_config(preset: str = "") -> Experiment:
    """Before anything is planned; ValueError for a preset that does not exist."""
    if preset not in METHODS:
        raise ValueError(f"there is no preset {preset!r}, but heatmap and cascade, or none")
    return Experiment(method=METHODS[preset](), name="auto")


def wishes(preset: str = "") -> Wishes:
    """What the preset asks of the plan; that there is this function says that one is made."""
    return Wishes(method=preset)
