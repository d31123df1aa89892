"""A cohort of synthetic angiograms on disk.

```
root/images/<case>.nii.gz         int16 HU
root/landmarks/<case>.mrk.json    the scheme's landmarks, LPS mm, and which ones are absent
root/anatomy/<case>.json          segments that exist; centrelines, tangents, radii
root/attributes.csv               which segments each person has
root/phantom.json                 how it was made
root/splits.json                  written last
```
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.anatomy import Scheme
from jaxmark.core.geometry import apply_affine
from jaxmark.data.attributes import write_attributes
from jaxmark.data.landmarks import Landmarks, write_mrk_json
from jaxmark.data.phantoms.folders import make_cases, name_cases, unfinished
from jaxmark.data.phantoms.lumen import Vessel
from jaxmark.data.scans import write_scan
from jaxmark.system.files import write_json, write_text_atomic

_ENDINGS = {"images": ".nii.gz", "landmarks": ".mrk.json", "anatomy": ".json"}


@dataclass(frozen=True)
class VesselCase:
    """A synthetic angiogram and its anatomy."""

    # (X, Y, Z) int16
    voxels: np.ndarray
    # (4, 4) voxels -> LPS mm
    ijk_to_lps: np.ndarray
    # (K, 3) in the scheme's order; NaN for what the person lacks
    landmarks_mm: np.ndarray
    # (S,) bool
    segment_present: np.ndarray
    vessels: tuple[Vessel, ...]
    # Further facts of the person, as JSON types.
    facts: Mapping[str, Any]

    def named(self, scheme: Scheme) -> Landmarks:
        """Name -> LPS mm, or None for what is absent; what the volume misses is left out."""
        ijk = apply_affine(np.linalg.inv(self.ijk_to_lps), self.landmarks_mm)
        last = np.array(self.voxels.shape) - 1
        absent = np.isnan(ijk).any(1)
        inside = np.all((ijk >= 0) & (ijk <= last), axis=1)
        rows = zip(scheme.landmarks, self.landmarks_mm, absent, inside, strict=True)
        return {name: None if gone else xyz for name, xyz, gone, here in rows if gone or here}


def write_cohort(
    root: Path, phantom: Any, make_case: Callable[[Any, int], VesselCase], workers: int = 0
) -> None:
    """Writes the files of a cohort that are missing in `root`.

    `workers` processes share the work; 0: one for each CPU core. Their number changes no byte.

    Args:
      phantom: its settings, with `train`, `val`, `test`, `shape`, `scheme` and `recipe_version`.
      make_case: settings and the number of a case -> the case; a function of a module.
    """
    splits = name_cases({split: getattr(phantom, split) for split in ("train", "val", "test")})
    names = [name for cases in splits.values() for name in cases]
    todo = [(phantom, make_case, *job, root) for job in unfinished(root, names, _ENDINGS)]
    if not todo and (root / "splits.json").exists():
        return
    make_cases(_write_case, todo, phantom.shape, workers)
    scheme = phantom.scheme
    present = {}
    for name in names:
        known = json.loads((root / "anatomy" / f"{name}.json").read_text())
        present[name] = list(known["segment_present"].values())
    write_attributes(root / "attributes.csv", [s.name for s in scheme.segments], present)
    settings = {"recipe": phantom.recipe_version, **dataclasses.asdict(phantom)}
    about = {"schema_version": 1, "class": type(phantom).__name__, "scheme": scheme.name}
    write_json(root / "phantom.json", {**about, "phantom": settings})
    write_text_atomic(root / "splits.json", json.dumps(splits, indent=1))


def _write_case(job: tuple[Any, Callable[[Any, int], VesselCase], int, str, Path]) -> None:
    """Write the files of one case, `anatomy/` last: where it is, the others are."""
    phantom, make_case, number, name, root = job
    case = make_case(phantom, number)
    write_scan(root / "images" / f"{name}.nii.gz", case.voxels, case.ijk_to_lps)
    write_mrk_json(root / "landmarks" / f"{name}.mrk.json", case.named(phantom.scheme))
    tree = _describe(case, phantom.scheme)
    write_text_atomic(root / "anatomy" / f"{name}.json", json.dumps(tree))


def _describe(case: VesselCase, scheme: Scheme) -> dict[str, Any]:
    """A synthetic person's anatomy, as JSON types."""
    segments = [segment.name for segment in scheme.segments]
    return {
        "schema_version": 1,
        "scheme": scheme.name,
        "segment_present": {
            name: bool(there) for name, there in zip(segments, case.segment_present, strict=True)
        },
        **case.facts,
        "centrelines": [
            {
                "name": vessel.name,
                "segment": segments[vessel.segment] if vessel.segment >= 0 else None,
                "points_lps_mm": np.round(vessel.points_mm, 3).tolist(),
                "tangents": np.round(vessel.tangents, 3).tolist(),
                "radii_mm": np.round(vessel.radii_mm, 3).tolist(),
            }
            for vessel in case.vessels
        ],
    }
