"""A trained model as one file that needs no jaxmark: `.jax.zip` or `.onnx`.

Both hold the same program (`portable`), its weights, and the same `model.json`, which describes the
program's inputs and outputs, the place of its grid, and the calibration.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array, export

import jaxmark
from jaxmark.core.calibration import OFFSET, POWER
from jaxmark.data.frame import Frame
from jaxmark.data.resampling import BACKGROUND_PERCENTILE
from jaxmark.inference.calibration import Calibration
from jaxmark.inference.graph import Unknown
from jaxmark.inference.model import TrainedModel
from jaxmark.inference.portable import (
    INPUTS,
    OUTPUTS,
    PROBABILITIES,
    Program,
    obstacle,
    program_of,
    variables_of,
    weights_of,
)
from jaxmark.methods.method import Method
from jaxmark.system.errors import InputError
from jaxmark.system.files import json_text, replacing

SCHEMA_VERSION = 1
JAX, ONNX = ".jax.zip", ".onnx"
DESCRIPTION, TEMPLATE = "model.json", "template.mha"
# Platforms of JAX's programs, and what `Task.platform` calls them.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}
# One date for all files, so that a model always gives the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def format_of(file: Path) -> str:
    """`JAX` or `ONNX`; InputError if the name ends otherwise."""
    for suffix in (JAX, ONNX):
        if file.name.endswith(suffix):
            return suffix
    raise InputError("--output", f"{file} ends neither in {ONNX} nor in {JAX}, the two formats")


def write(
    model: TrainedModel, methods: Callable[[str], Method], file: Path, workdir: Path
) -> dict[str, Any]:
    """Write the file; return its `model.json`.

    Args:
      methods: `Task.platform` -> the model's method there.
      workdir: for messages.

    Raises:
      InputError: such a model can't be exported, or not to this format.
      OSError: the file cannot be written.
    """
    kind = format_of(file)
    if why := obstacle(methods("cpu"), model.frame):
        name = type(model.experiment.method).__name__
        raise InputError(
            workdir,
            f"holds a model of {name} that can't be exported: {why}. --mode=pack makes a file "
            "for users of jaxmark",
        )
    if kind == JAX:
        return _write_jax(model, methods, file)
    if model.frame.template is not None:
        raise InputError(
            "--output",
            f"{file}: the model needs scans that are registered to its template, and {ONNX} has no "
            f"place for a template; use {JAX}",
        )
    if importlib.util.find_spec("onnx") is None:
        raise InputError("--output", f"{ONNX} needs ONNX, which is not installed: pip install onnx")
    return _write_onnx(model, methods("onnx"), file)


def _write_jax(model: TrainedModel, methods: Callable[[str], Method], file: Path) -> dict[str, Any]:
    weights = _host(weights_of(model.variables))
    programs, described = {}, {}
    for platform, name in PLATFORMS.items():
        program = program_of(methods(name), model.frame, model.experiment.predict.decoder)
        made = _exported(model, program, weights, platform)
        programs[f"{platform}.program"] = bytes(made.serialize())
        described[platform] = {
            "file": f"{platform}.program",
            "calling_convention": made.calling_convention_version,
        }
        outputs = list(jax.tree.unflatten(made.out_tree, made.out_avals))
    tree = _description(model, weights, outputs)
    tree["programs"] = described
    tree["weights"] = sorted(weights)
    with replacing(file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, DESCRIPTION, json_text(tree).encode())
        for name, content in programs.items():
            _add(archive, name, content)
        for name in sorted(weights):
            array = io.BytesIO()
            np.save(array, weights[name], allow_pickle=False)
            _add(archive, f"{name}.npy", array.getvalue())
        if model.frame.template is not None:
            _add(archive, TEMPLATE, (model.preparation / TEMPLATE).read_bytes())
    return tree


def _exported(
    model: TrainedModel, program: Program, weights: Mapping[str, np.ndarray], platform: str
) -> export.Exported:
    """A program of (weights, image, background) for any batch size; it computes case by case."""

    def of_batch(weights: Mapping[str, Array], image: Array, background: Array) -> dict[str, Array]:
        variables = variables_of(weights, model.variables)

        def of_one(case: tuple[Array, Array]) -> dict[str, Array]:
            found = program(variables, *(array[None] for array in case))
            return {name: array[0] for name, array in found.items()}

        return jax.lax.map(of_one, (image, background))

    (batch,) = export.symbolic_shape("b")
    like = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    image = jax.ShapeDtypeStruct((batch, *model.frame.shape), np.float32)
    background = jax.ShapeDtypeStruct((batch,), np.float32)
    exporter = export.export(jax.jit(of_batch), platforms=[platform])
    with _without_folders():
        return exporter(like, image, background)


@contextlib.contextmanager
def _without_folders() -> Iterator[None]:
    """In this block programs name source files without folders, which belong to this machine."""
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, ".*/")
    try:
        yield
    finally:
        jax.config.update(option, before)


def _write_onnx(model: TrainedModel, method: Method, file: Path) -> dict[str, Any]:
    from jaxmark.inference.onnx_graph import OPSET, model_of

    variables = jax.device_get(model.variables)
    program = program_of(method, model.frame, model.experiment.predict.decoder)
    try:
        made = model_of(
            functools.partial(program, variables),
            {"image": model.frame.shape, "background": ()},
        )
    except Unknown as operation:
        problem = f"{ONNX} has no operation for {operation}, which this model needs; use {JAX}"
        raise InputError("--output", problem) from operation
    outputs = [output.name for output in made.graph.output]
    tree = _description(model, _host(weights_of(variables)), outputs)
    tree["opset"] = OPSET
    tree["versions"]["onnx"] = version("onnx")
    entry = made.metadata_props.add()
    entry.key, entry.value = DESCRIPTION, json_text(tree)
    with replacing(file) as temporary:
        temporary.write_bytes(made.SerializeToString(deterministic=True))
    return tree


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def _host(weights: Mapping[str, Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(jax.device_get(array)) for name, array in weights.items()}


def _description(
    model: TrainedModel, weights: Mapping[str, np.ndarray], outputs: list[str]
) -> dict[str, Any]:
    """`model.json`, in either format."""
    frame, scheme = model.frame, model.scheme
    return {
        "schema_version": SCHEMA_VERSION,
        "name": model.experiment.name,
        "method": type(model.experiment.method).__name__,
        "step": model.step,
        "weights_sha256": _digest(weights),
        "versions": {name: version(name) for name in ("jax", "numpy")}
        | {"jaxmark": jaxmark.__version__},
        "landmarks": list(scheme.landmarks),
        "mirrored_pairs": [list(pair) for pair in scheme.symmetric_pairs],
        "untrained": list(frame.untrained),
        "segments": [segment.name for segment in scheme.segments],
        "inputs": INPUTS,
        "outputs": {name: OUTPUTS.get(name, PROBABILITIES) for name in sorted(outputs)},
        "decoder": model.experiment.predict.decoder,
        "grid": _grid(frame),
        "intensity": {
            "kind": frame.intensity,
            "range": list(frame.intensity_range),
            "background_percentile": BACKGROUND_PERCENTILE,
        },
        "calibration": _calibration(model.calibration),
    }


def _digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes and values."""
    seen = hashlib.sha256()
    for name in sorted(weights):
        seen.update(json.dumps([name, weights[name].shape, weights[name].dtype.str]).encode())
        seen.update(np.ascontiguousarray(weights[name]).tobytes())
    return seen.hexdigest()


def _grid(frame: Frame) -> dict[str, Any]:
    """Shape, spacing and place of the grid; see docs/export.md for the three kinds of places."""
    registered = frame.template is not None
    to_world = frame.common_to_template if registered else np.eye(4)
    kind = "registration" if registered else frame.register
    return {
        "shape": list(frame.shape),
        "spacing_mm": frame.spacing_mm.tolist(),
        "placed_by": {"none": "world", "middle": "middle"}.get(kind, "registration"),
        "ijk_to_lps": (to_world @ frame.grid_to_common).tolist(),
        "registration": {
            "kind": frame.register,
            "metric": frame.metric,
            "search_degrees": frame.search_degrees,
            "template": TEMPLATE,
        }
        if registered
        else None,
    }


def _calibration(calibration: Calibration) -> dict[str, Any]:
    """The calibration as JSON types; null where nothing is known."""
    spread, presence = calibration.by_spread, calibration.presence_model
    return {
        "coverage": calibration.coverage,
        "radius_mm": _with_none(calibration.radius_mm),
        "by_spread": spread
        and {
            "factor_mm": _with_none(spread.factor_mm),
            "usual_mm": spread.usual_mm,
            "offset": OFFSET,
            "power": POWER,
        },
        "presence": presence
        and {"intercept": presence.intercept.tolist(), "slope": presence.slope},
    }


def _with_none(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
