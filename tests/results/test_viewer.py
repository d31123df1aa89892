"""The viewer of a report: what the page holds, and what a browser without a network shows of it."""

import base64
import gzip
import hashlib
import io
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
from browser import WITH_WEBGL, WITHOUT_WEBGL, browser
from PIL import Image

from jaxmark.core.geometry import apply_affine, compose_affine, rotation_from_quaternion
from jaxmark.results.evaluate import evaluate
from jaxmark.results.figures.style import PREDICTION, TRUTH
from jaxmark.results.measures.points import Points
from jaxmark.results.page import page
from jaxmark.results.report import write_report
from jaxmark.results.shown_cases import OverlayCase, doubtful_cases
from jaxmark.results.viewer import section, volumes
from jaxmark.results.viewer.section import BUNDLE, FOLDER, viewer_of

EVIL = "</script><script>alert(1)</script><!-- & \"'"
SHAPE, SPACING = (48, 40, 32), np.array([1.0, 1.5, 2.0])
# To the patient's right, to the back, to the feet.
SPOT = np.array([[10, 28, 9], [35, 12, 20]])
MOVED = np.array([3.0, 0.0, 0.0])
RADIUS_MM = 8.0
# The scan lies askew in its world.
PLACE = compose_affine(
    rotation_from_quaternion(np.array([0.9, 0.2, -0.3, 0.1])) * SPACING, [5.0, -60.0, 33.0]
)
# Of radii.
LIGHT = "#f4f6f8"
LANDMARKS = ("spot", EVIL, "absent one")


def make_image(spot, shape=SHAPE):
    """Dim noise with a bright cube of 7 voxels about the spot."""
    image = np.random.default_rng(0).uniform(0.1, 0.2, shape).astype(np.float16)
    image[tuple(slice(i - 3, i + 4) for i in spot)] = 1
    return image


def make_case(name, label, spot, labels=None, doubts=()):
    return OverlayCase(
        name=name,
        image=make_image(spot),
        spacing_mm=SPACING.tolist(),
        truth_ijk=np.array([spot, [24, 20, 16], [np.nan] * 3]),
        predicted_ijk=np.array([spot + MOVED, [24, 20, 16], [np.nan] * 3]),
        label=label,
        doubts=doubts,
        ijk_to_lps=PLACE,
        labels=labels,
        segments=("left part",) if labels is not None else (),
    )


@pytest.fixture(scope="module")
def points():
    """Two cases of three landmarks; the first is where the spot is, the third is absent."""
    truth = np.stack([[spot, [24, 20, 16], [0, 0, 0]] for spot in SPOT]).astype(float)
    moved = truth.copy()
    moved[:, 0] += MOVED
    present = np.tile([True, True, False], (2, 1))
    return Points(
        cases=(f"case {EVIL}", "b"),
        landmarks=LANDMARKS,
        truth_mm=apply_affine(PLACE, truth),
        predicted_mm=apply_affine(PLACE, moved),
        present=present,
        absent=~present,
        score=np.ones((2, 3)),
        presence=np.tile([0.9, np.nan, 0.1], (2, 1)),
        radius_mm=np.tile([RADIUS_MM, np.inf, np.inf], (2, 1)),
    )


@pytest.fixture(scope="module")
def shown(points):
    labels = np.zeros(SHAPE, np.uint8)
    labels[30:] = 1
    return [
        make_case(points.cases[0], "best", SPOT[0]),
        make_case("b", "doubtful", SPOT[1], labels, ("said by a fit",)),
    ]


@pytest.fixture(scope="module")
def path(points, shown, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("viewer")
    (workdir / "config.json").write_text("{}")
    evaluate(points, thresholds_mm=(2.0,), floors={}, folder=workdir / "evaluation")
    return write_report(workdir, shown, {}, viewer=True)


def policy_of(text):
    return re.search('http-equiv="Content-Security-Policy"\\s+content="([^"]*)"', text)[1]


def blocks_of(text):
    return dict(re.findall('<script type="[^"]*" id="viewer-([a-z0-9-]*)">([^<]*)</script>', text))


def test_the_bundle_is_the_one_that_is_recorded():
    about = json.loads((FOLDER / "niivue" / "version.json").read_text("utf-8"))
    assert hashlib.sha256(BUNDLE.read_bytes()).hexdigest() == about["sha256"]
    licences = (FOLDER / "niivue" / "LICENSES.txt").read_text("utf-8")
    assert f"NiiVue {about['version']}" in licences and "BSD 2-Clause License" in licences


def test_the_bundle_has_the_lines_that_make_a_mip():
    script, bundle = ((FOLDER / "viewer.js").read_text("utf-8"), BUNDLE.read_text("utf-8"))
    replaced = re.findall('^ *\\["(.*?)",', script, re.MULTILINE)
    assert len(replaced) == 2
    for line in replaced:
        assert line in bundle


def test_only_the_two_scripts_may_run_and_nothing_is_fetched(path):
    text = path.read_text("utf-8")
    policy = dict(part.strip().split(" ", 1) for part in policy_of(text).split(";"))
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    allowed = [
        hashlib.sha256(content).digest() for content in (script.encode(), BUNDLE.read_bytes())
    ]
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in allowed]
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": " ".join(hashes),
    }
    assert text.count("<script>") == 1 and not re.search("<script[^>]* src", text)


def test_other_pages_have_a_policy_without_scripts():
    text = page("name", "", "", [("Title", "body")])
    assert "script" not in text and "style-src 'unsafe-inline'" in policy_of(text)


def test_page_holds_bundle_scans_and_landmarks(path, points):
    text = path.read_text("utf-8")
    blocks = blocks_of(text)
    assert sorted(blocks) == ["data", "labels-1", "niivue", "scan-0", "scan-1"]
    assert gzip.decompress(base64.b64decode(blocks["niivue"])) == BUNDLE.read_bytes()
    data = json.loads(blocks["data"])
    assert data["schema_version"] == 1 and [len(case["landmarks"]) for case in data["cases"]] == [
        3,
        3,
    ]
    spot, _, absent = data["cases"][0]["landmarks"]
    assert spot["truth"] == pytest.approx(SPOT[0]) and spot["error_mm"] == pytest.approx(3)
    assert spot["radius_mm"] == RADIUS_MM and spot["presence"] == 0.9
    assert absent["truth"] is None and absent["absent"] and absent["radius_mm"] is None
    assert data["cases"][1]["segments"][0]["name"] == "left part"
    assert "NiiVue 0.69.0" in text and "Copyright (c) 2021, Niivue" in text
    # The bundle is 1.1 MB of it.
    assert 1.2e6 < path.stat().st_size < 2e6


def test_a_scan_in_the_page_is_the_prepared_one(path, shown, tmp_path):
    data = blocks_of(path.read_text("utf-8"))
    (tmp_path / "scan.nii.gz").write_bytes(base64.b64decode(data["scan-0"]))
    scan = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    assert scan.GetSpacing() == pytest.approx(SPACING) and scan.GetSize() == SHAPE
    # ITK is LPS: both in-plane axes of RAS order run backwards.
    assert scan.GetDirection() == (-1, 0, 0, 0, -1, 0, 0, 0, 1)
    voxels = sitk.GetArrayFromImage(scan).T[::-1, ::-1]
    levels = json.loads(data["data"])["cases"][0]["window"]
    assert voxels.min() == 0 and 0 <= levels[0] < levels[1] <= 255
    assert np.corrcoef(voxels.ravel(), shown[0].image.ravel().astype(float))[0, 1] > 0.99


def test_large_volumes_are_coarse_and_stay_in_place(monkeypatch):
    monkeypatch.setattr(volumes, "MOST_VOXELS", 9_000)
    image = make_image(SPOT[0], (49, 40, 33))
    labels = np.zeros(image.shape, np.uint8)
    labels[10, 28, 9] = 1
    labels[31:] = 2
    seen = volumes.viewed_volume(image, PLACE, SPOT[:1], labels)
    assert seen.voxels.shape == seen.labels.shape == (24, 20, 16)
    assert seen.spacing_mm == pytest.approx(2 * SPACING)
    brightest = np.argwhere(seen.voxels > 200).mean(0)
    away = apply_affine(seen.ijk_to_lps, brightest) - apply_affine(PLACE, SPOT[0].astype(float))
    assert np.linalg.norm(away / np.linalg.norm(SPACING)) < 0.6
    assert (seen.labels[16:] == 2).all() and not (seen.labels[:15] == 2).any()


def test_what_is_around_a_scan_is_left_out():
    image = np.zeros((60, 60, 60), np.float16)
    image[40:50, 40:50, 40:50] = make_image((5, 5, 5), (10, 10, 10))
    seen = volumes.viewed_volume(image, np.eye(4), np.array([[52.0, 45, 45], [np.nan] * 3]))
    assert seen.voxels.shape == (21, 18, 18)
    assert seen.ijk_to_lps[:3, 3] == pytest.approx([36, 36, 36])


def test_an_empty_volume_has_a_window():
    seen = volumes.viewed_volume(np.zeros((4, 4, 4)), np.eye(4), np.zeros((1, 3)))
    assert seen.window == (0, 255) and not seen.voxels.any()


def test_pictures_have_no_viewer(points, shown):
    picture = OverlayCase(**{**vars(shown[0]), "image": np.zeros((8, 8, 1))})
    assert viewer_of(points, [picture]) is None
    assert viewer_of(points, []) is None


def test_data_that_could_end_its_block_is_refused():
    with pytest.raises(ValueError, match="not a data block"):
        section.data_block("viewer-data", "text/plain", "</script>")


def test_doubtful_cases_are_those_with_doubts_then_those_of_large_radii(points):
    one = {
        name: values[:1] for name, values in vars(points).items() if isinstance(values, np.ndarray)
    }
    many = {name: np.repeat(values, 5, axis=0) for name, values in one.items()}
    many["radius_mm"] = np.array([1, 5, 3, 4, 2])[:, None] * np.array([[1.0, 1.0, np.inf]])
    cohort = Points(cases=tuple("abcde"), landmarks=LANDMARKS, **many)
    assert doubtful_cases(cohort, {"e": ["little overlap"]}, ["a", "d"]) == [
        ("e", ("little overlap",)),
        ("b", ("large stated radii: mean 5.00 mm",)),
    ]
    many["radius_mm"] = np.full((5, 3), np.inf)
    many["score"] = np.array([0.9, 0.8, 0.2, 0.7, 0.5])[:, None] * np.ones((5, 3))
    cohort = Points(cases=tuple("abcde"), landmarks=LANDMARKS, **many)
    assert doubtful_cases(cohort, {}, ["a", "e"]) == [
        ("c", ("low scores: mean 0.2",)),
        ("d", ("low scores: mean 0.7",)),
    ]


READY = "return document.querySelector('#viewer-landmarks tr.chosen') !== null"


@pytest.fixture(scope="module")
def window(path):
    with browser(*WITH_WEBGL, size=(1000, 700)) as opened:
        opened.open(path)
        # Every pixel of a rendering is the CPU's here.
        opened.run("document.querySelector('.viewer-body').style.height = '20rem'")
        opened.wait(READY)
        yield opened


def choose(window, **chosen):
    """Options of lists, and whether boxes are ticked; drawn once."""
    script = """let last;
    for (const [name, value] of Object.entries(arguments[0])) {
      const e = document.getElementById("viewer-" + name);
      if (typeof value === "boolean") e.checked = value;
      else if (e.value !== value) { e.value = value; e.dispatchEvent(new Event("input")); }
      else continue;
      if (typeof value !== "boolean") e.dispatchEvent(new Event("change"));
      else last = e;
    }
    last?.dispatchEvent(new Event("change"))"""
    window.run(script, chosen)


ALL = {"truth": True, "predicted": True, "radii": True}
NONE = dict.fromkeys(ALL, False)


@pytest.fixture
def first(window):
    """The first case with everything on, in one slice, which is drawn fast."""
    choose(window, view="axial", zoom="1", labels=False)
    choose(window, **ALL)
    case_shown(window, 0)
    return window


def case_shown(window, number):
    window.run("document.querySelector('#viewer-landmarks tr.chosen').classList.remove('chosen')")
    script = """const e = document.getElementById("viewer-case");
    e.value = arguments[0]; e.dispatchEvent(new Event("change"))"""
    window.run(script, str(number))
    window.wait(READY)


def marked(window, color):
    """(H, W) bool: where the marks have this colour, whatever is under them."""
    script = "return document.getElementById('viewer-marks').toDataURL()"
    png = base64.b64decode(window.run(script).partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels[..., :3] - rgb).max(axis=2) < 12) & (pixels[..., 3] > 200)


def middle(mask):
    """x, y of the middle of what is there."""
    assert mask.sum() > 4
    return np.argwhere(mask).mean(0)[::-1]


def crosshair_mm(window):
    (text,) = window.texts("#viewer-place")
    numbers = re.search(r"crosshair at (.*) mm", text)[1].replace("−", "-").split(", ")
    return np.array([float(number) for number in numbers])


def test_a_browser_draws_the_page_without_an_error(first):
    choose(first, view="all")
    assert first.log() == []
    assert first.run("return document.getElementById('viewer').checkVisibility()")
    assert not first.run("return document.querySelector('figure.scan').checkVisibility()")
    picture = first.seen(".viewer-stage")
    # Four views of noise and a spot, not one colour.
    height, width = picture.shape[:2]
    for rows in (slice(0, height // 2), slice(height // 2, None)):
        for columns in (slice(0, width // 2), slice(width // 2, None)):
            assert picture[rows, columns].std() > 5
    assert first.texts("#viewer-case option")[0] == f"Best case: case {EVIL}, mean error 1.50 mm"
    assert first.texts("#viewer-landmarks button") == ["spot", EVIL, "absent one"]
    numbers = first.texts("#viewer-landmarks td.n")
    assert numbers == ["3.00", "8.00", "0.90", "0.00", "–", "–", "absent", "–", "0.10"]


def side_of_the_middle(place, picture):
    """-1 or 1 across and down: left or right, above or below."""
    height, width = picture.shape[:2]
    return np.sign(place - [width / 2, height / 2]).tolist()


@pytest.mark.parametrize(
    ("view", "side"),
    [("axial", [-1, 1]), ("coronal", [-1, 1]), ("sagittal", [1, 1]), ("mip", [-1, 1])],
)
def test_marks_lie_on_what_they_mark(first, view, side):
    choose(first, view=view, radii=False, predicted=False)
    dots = marked(first, TRUTH)
    choose(first, **NONE)
    stage = first.seen(".viewer-stage")
    spot = middle(stage.min(axis=2) > 170)
    assert side_of_the_middle(spot, stage) == side
    # About one voxel.
    assert crosshair(first) == pytest.approx(spot, abs=4)
    near = np.zeros_like(dots)
    x, y = np.round(spot).astype(int)
    near[y - 12 : y + 13, x - 12 : x + 13] = True
    assert middle(dots & near) == pytest.approx(spot, abs=4)


def crosshair(window):
    """x, y where its lines would meet."""
    lines = marked(window, "#5aa9e6")
    assert lines.any()
    return np.array([lines.sum(axis=0).argmax(), lines.sum(axis=1).argmax()])


def test_radius_is_drawn_to_the_scale_of_the_scan(first):
    choose(first, view="mip", predicted=False, radii=False)
    x, _ = crosshair(first)
    columns = np.flatnonzero(marked(first, TRUTH).any(axis=0))
    # The other true place is 14 mm to the patient's left.
    per_mm = (columns[columns > x + 20].mean() - x) / 14
    choose(first, truth=False, radii=True)
    ring = np.flatnonzero(marked(first, LIGHT).any(axis=0))
    assert np.ptp(ring) / 2 / per_mm == pytest.approx(RADIUS_MM, abs=0.5)
    # About the predicted place.
    assert ((ring.max() + ring.min()) / 2 - x) / per_mm == pytest.approx(3, abs=0.5)
    choose(first, radii=False)
    assert not marked(first, LIGHT).any()


def test_a_landmark_of_the_list_moves_the_crosshair(first, points):
    truth, predicted = points.truth_mm[0], points.predicted_mm[0]
    row = "#viewer-landmarks tr:nth-child({})".format
    first.click(row(2))
    assert crosshair_mm(first) == pytest.approx(truth[1], abs=0.1)
    first.click(row(1))
    assert crosshair_mm(first) == pytest.approx(truth[0], abs=0.1)
    first.click(row(1))
    assert crosshair_mm(first) == pytest.approx(predicted[0], abs=0.1)
    # Without truth it is the predicted place.
    first.click(row(3))
    assert crosshair_mm(first) == pytest.approx(predicted[2], abs=0.1)
    assert first.log() == []


def test_zoom_is_about_the_crosshair(first):
    choose(first, view="coronal")
    before = middle(marked(first, PREDICTION)) - crosshair(first)
    choose(first, zoom="4")
    after = middle(marked(first, PREDICTION)) - crosshair(first)
    height, width = marked(first, TRUTH).shape
    assert crosshair(first) == pytest.approx([width / 2, height / 2], abs=3)
    assert after[0] / before[0] == pytest.approx(4, rel=0.15)


def test_the_selector_changes_the_case_and_its_segments_can_be_shown(first, points):
    assert first.texts("#viewer-doubts") == [""]
    case_shown(first, 1)
    assert first.texts("#viewer-doubts") == ["Doubtful: said by a fit"]
    assert crosshair_mm(first) == pytest.approx(points.truth_mm[1, 0], abs=0.1)
    choose(first, **NONE)
    plain = first.seen(".viewer-stage")
    # To the patient's left, to the face.
    spot = middle(plain.min(axis=2) > 170)
    assert side_of_the_middle(spot, plain) == [1, -1]
    choose(first, labels=True)
    tinted = np.abs(first.seen(".viewer-stage") - plain).max(axis=2) > 30
    # The segment is the patient's left third.
    columns = np.flatnonzero(tinted.mean(axis=0) > 0.3)
    assert columns.size > 30 and columns.min() > 0.5 * plain.shape[1]
    assert first.log() == []


def test_on_paper_there_are_pictures(first):
    first.media(media="print")
    try:
        assert first.run("return document.querySelector('figure.scan').checkVisibility()")
        assert not first.run("return document.getElementById('viewer').checkVisibility()")
    finally:
        first.media()


def test_without_webgl_or_scripts_there_are_pictures(path):
    with browser(*WITHOUT_WEBGL) as opened:
        opened.open(path)
        opened.wait("return !document.getElementById('viewer-problem').hidden")
        (why,) = opened.texts("#viewer-problem")
        assert why.startswith("Pictures instead of the interactive viewer: ") and "WebGL 2" in why
        shown = (
            "return [...document.querySelectorAll('figure.scan img')].map(e => e.checkVisibility())"
        )
        assert opened.run(shown) == [True, True]
        assert not opened.run("return document.getElementById('viewer').checkVisibility()")
        assert opened.log() == []
        opened.scripts(False)
        opened.open(path)
        assert opened.run(shown) == [True, True]
        assert not opened.run("return document.getElementById('viewer').checkVisibility()")
