"""Landmarks of a scan by an exported model: `python use_export.py MODEL.onnx|MODEL.jax.zip SCAN`.

Needs NumPy, SimpleITK, and onnxruntime or jax; not jaxmark. Prints one line a landmark: name, place
in LPS mm, and the radius that holds the truth with the stated coverage.
"""

import json
import sys

import numpy as np
import SimpleITK as sitk


def onnx_model(file):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    model = json.loads(session.get_modelmeta().custom_metadata_map["model.json"])
    return model, lambda **inputs: dict(zip(names, session.run(None, inputs), strict=True))


def jax_model(file):
    import jax
    from jax import export

    archive = np.load(file)
    model = json.loads(archive["model.json"])
    platform = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
    program = export.deserialize(bytearray(archive[f"{platform}.program"]))
    weights = {name: archive[name] for name in model["weights"]}
    return model, lambda image, background: program.call(weights, image, background)


def on_grid(scan, grid):
    """The scan on the model's grid, NaN outside; smoothed first where the grid is coarser."""
    matrix = np.array(grid["ijk_to_lps"])
    if grid["placed_by"] == "registration":
        sys.exit("register the scan to the template in the file, then resample it on the grid")
    if grid["placed_by"] == "middle":
        middle = [(n - 1) / 2 for n in scan.GetSize()]
        matrix[:3, 3] += scan.TransformContinuousIndexToPhysicalPoint(middle)
    to_scan = np.linalg.inv(np.reshape(scan.GetDirection(), (3, 3)) * scan.GetSpacing())
    ratio = np.linalg.norm(to_scan @ matrix[:3, :3], axis=1)
    sigma_mm = 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0)) * scan.GetSpacing()
    if sigma_mm.max() > 0.01:
        scan = sitk.DiscreteGaussian(scan, (sigma_mm**2).tolist(), 32, 0.01, True)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    direction = (matrix[:3, :3] / spacing).ravel().tolist()
    place = matrix[:3, 3].tolist(), spacing.tolist(), direction
    like = sitk.Transform(), sitk.sitkLinear, *place, float("nan"), sitk.sitkFloat32
    return sitk.Resample(scan, grid["shape"], *like)


def main(file, path):
    model, run = (onnx_model if file.endswith(".onnx") else jax_model)(file)
    scan = sitk.ReadImage(path, sitk.sitkFloat32)
    share = model["intensity"]["background_percentile"]
    background = np.percentile(sitk.GetArrayViewFromImage(scan)[::2, ::2, ::2], share)
    image = on_grid(scan, model["grid"])
    # SimpleITK's arrays are (z, y, x).
    voxels = sitk.GetArrayFromImage(image).T[None]
    found = run(image=np.ascontiguousarray(voxels), background=np.float32([background]))
    places = np.array(found["positions_ijk"][0], float)
    known = model["calibration"]
    radius = np.array(known["radius_mm"], float)
    if (by := known["by_spread"]) is not None:
        spread = np.array(found["spread_mm"][0]) / by["usual_mm"]
        growth = (by["offset"] + spread) / (by["offset"] + 1)
        radius = np.array(by["factor_mm"], float) * growth ** by["power"]
    for name, ijk, mm in zip(model["landmarks"], places, radius, strict=True):
        x, y, z = image.TransformContinuousIndexToPhysicalPoint(ijk.tolist())
        print(f"{name}\t{x:.3f}\t{y:.3f}\t{z:.3f}\t{mm:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
