"""The experiment file of models that were trained before: `--checkpoint=WORKDIR` stands for it.

So that `--config.predict.decoder=argmax` and the like work there as well.
"""

from pathlib import Path

from jaxmark.config import Experiment, from_json
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import SpatialConfiguration
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json

METHODS: dict[str, type] = {
    kind.__name__: kind
    for kind in (HeatmapRegression, Adversarial, RegressionClassification, SpatialConfiguration)
}


def get_config(workdir: str = "") -> Experiment:
    """The experiment whose model lies in `workdir`; InputError where there is none."""
    folder = Path(workdir)
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(folder, "holds no trained model: there is no config.json (--checkpoint)")
    return from_json(read_json(path, 1), METHODS, path)
