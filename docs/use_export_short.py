"""`use_export.py` in short: `python use_export_short.py MODEL.jax.zip SCAN`, on a CPU.

For models that place their grid by the scan's header. Needs JAX, NumPy and SimpleITK. Prints one
line a landmark: name, and place in LPS mm.
"""

import json
import sys

import numpy as np
import SimpleITK as sitk
from jax import export

archive = np.load(sys.argv[1])
model = json.loads(archive["model.json"])
program = export.deserialize(bytearray(archive["cpu.program"]))
weights = {name: archive[name] for name in model["weights"]}
scan = sitk.ReadImage(sys.argv[2], sitk.sitkFloat32)
background = np.percentile(sitk.GetArrayViewFromImage(scan)[::2, ::2, ::2], 0.5)

# Without registration the grid's axes are those of the world.
grid = model["grid"]
assert grid["placed_by"] != "registration", "the scan has to be registered, see docs/export.md"
origin, spacing = np.array(grid["ijk_to_lps"])[:3, 3], np.array(grid["spacing_mm"])
if grid["placed_by"] == "middle":
    origin += scan.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in scan.GetSize()])

# The scan is smoothed along the axes where a voxel of the grid covers several of the scan.
mm_to_voxels = np.linalg.inv(np.reshape(scan.GetDirection(), (3, 3)) * scan.GetSpacing())
covered = np.linalg.norm(mm_to_voxels * spacing, axis=1)
smooth = sitk.DiscreteGaussian(scan, np.maximum(covered**2 - 1, 0) / 4, 32, 0.01, False)
place = {"outputOrigin": origin, "outputSpacing": spacing, "defaultPixelValue": np.nan}
image = sitk.Resample(smooth, grid["shape"], **place)

voxels = sitk.GetArrayFromImage(image).T[None]  # (1, X, Y, Z)
found = program.call(weights, voxels, np.float32([background]))
for name, ijk in zip(model["landmarks"], found["positions_ijk"][0].tolist(), strict=True):
    print(name, *image.TransformContinuousIndexToPhysicalPoint(ijk), sep="\t")
