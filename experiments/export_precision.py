"""Measures how far other runtimes and precisions move the landmarks of an exported model.

python -m experiments.export_precision --checkpoint=WORKDIR --input=FOLDER

FOLDER has scans that the model is for, such as `images` of a phantom cohort. They are prepared as
by `--mode=predict`. The model is exported to ONNX and run by onnxruntime, by OpenVINO in 32 and 16
bits, and by onnxruntime with weights and activations of 8 bits. Distances are from the landmarks
that jaxmark itself finds, in voxels of the model's grid and in millimetres.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from experiments.benchmarks.exported import KINDS
from jaxmark import workflow
from jaxmark.data.resampling import background, covered, resample
from jaxmark.inference.model import TrainedModel


def inputs_of(model: TrainedModel, path: Path) -> dict[str, np.ndarray]:
    """The inputs of an exported program for a scan, as a batch of one."""
    frame, scan = model.frame, model.frame.read(path)
    grid = frame.align(scan).matrix @ frame.grid_to_common
    inside = covered(scan, frame.shape, grid)
    image = np.where(inside, resample(scan, frame.shape, grid), np.nan)
    known = np.array([background(scan)], np.float32)
    return {"image": image.astype(np.float32)[None], "background": known}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=8, help="at most so many")
    arguments = parser.parse_args()
    model = workflow.load_model(arguments.checkpoint)
    paths = sorted(arguments.input.glob("*.nii.gz"))[: arguments.scans]
    decoder, origin = model.experiment.predict.decoder, model.frame
    scans = [origin.prepare(origin.read(path)).volume(path.name) for path in paths]
    found = model.predictor(model.variables, scans)
    expected = np.stack([np.asarray(f.prediction.positions_ijk[decoder]) for f in found])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        workflow.export(arguments.checkpoint, file)
        content = file.read_bytes()
    inputs = [inputs_of(model, path) for path in paths]
    print(f"{len(paths)} scans, {expected.shape[1]} landmarks")
    print("| run by | voxels: median | 99 % | largest | mm: median | 99 % | largest |")
    print("|---|---|---|---|---|---|---|")
    for name, make in KINDS.items():
        try:
            run = make(content)
            moved = np.concatenate([run(one)["positions_ijk"] for one in inputs]) - expected
        except Exception as error:  # noqa: BLE001 - a runtime's own, of which there are many
            print(f"| {name} | cannot: {' '.join(str(error).split())[:150]} |")
            continue
        cells = [
            f"{np.quantile(np.linalg.norm(by, axis=-1), share):.2g}"
            for by in (moved, moved * origin.spacing_mm)
            for share in (0.5, 0.99, 1)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
