"""The viewer of a report: NiiVue and the shown scans, as part of the page.

The page runs `viewer.js`, which adds NiiVue. NiiVue is gzipped in the page, which halves the page's
size. `niivue/` is an unchanged copy from npm; `version.json` has its version.
"""

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.geometry import apply_affine
from jaxmark.results.figures.pictures import segment_colors
from jaxmark.results.figures.style import PREDICTION, TRUTH
from jaxmark.results.measures.points import Points
from jaxmark.results.page import Code, data_block
from jaxmark.results.shown_cases import OverlayCase, title_of
from jaxmark.results.viewer.volumes import ViewedVolume, nifti, viewed_volume
from jaxmark.system.files import json_text, read_json

FOLDER = Path(__file__).parent
BUNDLE = FOLDER / "niivue" / "niivue.umd.js"
_GZIP = "application/gzip"


@dataclass(frozen=True)
class Viewer:
    """A part of a page, and its scripts."""

    html: str
    code: Code


def viewer_of(points: Points, cases: Sequence[OverlayCase]) -> Viewer | None:
    """A viewer of the cases that are volumes with a known place; None if there are none.

    `points` must hold each case, with its K landmarks.
    """
    shown = [case for case in cases if case.image.shape[2] > 1 and case.ijk_to_lps is not None]
    if not shown:
        return None
    bundle = BUNDLE.read_bytes()
    blocks = [data_block("viewer-niivue", _GZIP, _packed(gzip.compress(bundle, mtime=0)))]
    known = []
    for number, case in enumerate(shown):
        row = points.cases.index(case.name)
        volume = _volume(case, points, row)
        scan = nifti(volume.voxels, volume.spacing_mm)
        blocks.append(data_block(f"viewer-scan-{number}", _GZIP, _packed(scan)))
        if volume.labels is not None:
            labels = nifti(volume.labels, volume.spacing_mm)
            blocks.append(data_block(f"viewer-labels-{number}", _GZIP, _packed(labels)))
        known.append(_case(case, volume, points, row))
    tree = {"schema_version": 1, "truth": TRUTH, "prediction": PREDICTION, "cases": known}
    # Names come from data, and must not end the block.
    text = json_text(tree).replace("<", "\\u003c")
    blocks.append(data_block("viewer-data", "application/json", text))
    code = Code(
        script=(FOLDER / "viewer.js").read_text("utf-8"),
        added=(bundle,),
        style=(FOLDER / "viewer.css").read_text("utf-8"),
    )
    return Viewer(_html() + "".join(blocks), code)


def _volume(case: OverlayCase, points: Points, row: int) -> ViewedVolume:
    assert case.ijk_to_lps is not None
    to_ijk = np.linalg.inv(case.ijk_to_lps)
    marks = np.concatenate([points.predicted_mm[row], points.truth_mm[row][points.present[row]]])
    return viewed_volume(case.image, case.ijk_to_lps, apply_affine(to_ijk, marks), case.labels)


def _case(case: OverlayCase, volume: ViewedVolume, points: Points, row: int) -> dict[str, Any]:
    """The data of a case for `viewer.js`, as JSON types; positions are voxels of its volume."""
    to_ijk = np.linalg.inv(volume.ijk_to_lps)
    truth = apply_affine(to_ijk, points.truth_mm[row])
    predicted = apply_affine(to_ijk, points.predicted_mm[row])
    error, present = points.error_mm()[row], points.present[row]
    landmarks = [
        {
            "name": name,
            "truth": truth[k].tolist() if present[k] else None,
            "predicted": predicted[k].tolist(),
            "error_mm": _number(error[k]),
            "radius_mm": _number(points.radius_mm[row, k]),
            "presence": _number(points.presence[row, k]),
            "absent": bool(points.absent[row, k]),
        }
        for k, name in enumerate(points.landmarks)
    ]
    return {
        "title": title_of(case, points),
        "doubts": list(case.doubts),
        "shape": list(volume.voxels.shape),
        "spacing_mm": volume.spacing_mm.tolist(),
        "ijk_to_lps": volume.ijk_to_lps.tolist(),
        "window": list(volume.window),
        "landmarks": landmarks,
        "segments": [] if volume.labels is None else _segments(case.segments),
    }


def _segments(names: Sequence[str]) -> list[dict[str, Any]]:
    colors = np.round(255 * segment_colors(len(names))).astype(int)
    return [
        {"name": name, "color": color.tolist()} for name, color in zip(names, colors, strict=True)
    ]


def _html() -> str:
    """The viewer without its data; hidden until `viewer.js` has started."""
    about = read_json(FOLDER / "niivue" / "version.json", 1)
    licences = (FOLDER / "niivue" / "LICENSES.txt").read_text("utf-8")
    return _HTML.format(
        version=escape(about["version"]),
        licences=escape(licences),
        truth=TRUTH,
        prediction=PREDICTION,
    )


def _packed(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


_HTML = """<p id="viewer-problem" class="viewer-note" hidden></p>
<div id="viewer" class="viewer" hidden>
<div class="viewer-bar">
<label>case <select id="viewer-case"></select></label>
<label>view <select id="viewer-view">
<option value="all">slices and MIP</option>
<option value="axial">axial</option>
<option value="coronal">coronal</option>
<option value="sagittal">sagittal</option>
<option value="mip">MIP</option>
</select></label>
<label>zoom <input id="viewer-zoom" type="range" min="1" max="8" step="0.25" value="1"></label>
<span class="viewer-shown">
<label><input id="viewer-truth" type="checkbox" checked>
<span class="viewer-dot" style="background: {truth}"></span>truth</label>
<label><input id="viewer-predicted" type="checkbox" checked>
<span class="viewer-dot" style="background: {prediction}"></span>prediction</label>
<label><input id="viewer-radii" type="checkbox" checked>
<span class="viewer-dot viewer-ring"></span>stated radius</label>
<label id="viewer-labels-shown" hidden><input id="viewer-labels" type="checkbox">segments</label>
</span>
</div>
<p id="viewer-doubts" class="viewer-note"></p>
<div class="viewer-body">
<div class="viewer-stage">
<canvas id="viewer-canvas" aria-label="Slices and projection of the scan"></canvas>
<canvas id="viewer-marks" aria-hidden="true"></canvas>
</div>
<div class="viewer-list"><table>
<thead><tr><th>landmark</th><th class="n">error<br>(mm)</th><th class="n">radius<br>(mm)</th>
<th class="n">presence</th></tr></thead>
<tbody id="viewer-landmarks"></tbody>
</table></div>
</div>
<p id="viewer-place" class="viewer-note viewer-place" role="status"></p>
<p class="viewer-note"><strong>Left of the axial and coronal pictures is the patient’s
right.</strong> The face is at the top of the axial and on the left of the sagittal one. Slices lie
along the prepared volume; positions are of the scan.</p>
<p class="viewer-note">Choose a landmark in the list to move the crosshair to its true position;
choose it again for the predicted position. The circle is the stated radius. Marks in the slice are
full, marks up to three voxels away are faint; marks of the chosen landmark always show, as rings if
they are farther away. Left button: crosshair; in the MIP it turns the view. Right button: contrast
and brightness. Double-click: first contrast. Wheel, after a click: next slices.</p>
<details class="viewer-note"><summary>Shown by NiiVue {version}: licences</summary>
<pre>{licences}</pre></details>
</div>
"""
