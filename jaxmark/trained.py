"""The experiment file of a trained model: `--checkpoint=WORKDIR` reads it.

So options such as `--config.predict.decoder=argmax` work with a checkpoint too.
"""

from pathlib import Path

from jaxmark.config import SCHEMA_VERSION, Experiment, from_json
from jaxmark.registry import METHODS, PHANTOMS
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json


def get_config(workdir: str = "") -> Experiment:
    """The experiment whose model lies in `workdir`; InputError where there is none."""
    folder = Path(workdir)
    path = folder / "config.json"
    if not path.is_file():
        problem = "holds no trained model: there is no config.json (--checkpoint)"
        above = next((p for p in folder.absolute().parents if (p / path.name).is_file()), None)
        raise InputError(
            folder, problem + (f"; the folder above, {above}, has one" if above else "")
        )
    return from_json(read_json(path, SCHEMA_VERSION), METHODS | PHANTOMS, path)
