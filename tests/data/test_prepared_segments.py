"""Prepared segments: where labels lie, who has what, and what the cache does."""

import csv
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused
from segmented import CASES, NAMES, PLACE, SEGMENTS, SHAPE, labels_of, write_segmented

from jaxmark import workflow
from jaxmark.config import Augment, Data, Experiment
from jaxmark.core.anatomy import COW19, scheme_of
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import read_case, read_case_and_attributes, read_segmented_case
from jaxmark.data.cohort import read_cohort
from jaxmark.data.frame import load_frame, save_frame
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, write_cohort
from jaxmark.data.pipeline import CASE, training_batches
from jaxmark.data.prepare import prepare_cohort
from jaxmark.data.scans import read_scan, write_scan
from jaxmark.data.segmentations import read_segments
from jaxmark.methods import method
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import BY_SEGMENT, LABELS, Batch, Task
from jaxmark.methods.views import augmented
from jaxmark.results.contact_sheet import write_contact_sheets
from jaxmark.system.devices import data_mesh, put_batch
from jaxmark.system.errors import InputError
from jaxmark.training.provenance import fingerprint

# Segments are in the order of the labels.
OWN = (SEGMENTS[1], SEGMENTS[0], SEGMENTS[2])


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    spacing_mm, shape = (2.0, 2.0, 2.0), (56, 48, 44)
    write_cohort(folder, CirclePhantom(3, 1, 1, 4, spacing_mm=spacing_mm, shape=shape, unpaired=0))
    return Data(
        root=str(folder),
        cache=str(folder / "cache"),
        landmarks=COW19.landmarks,
        spacing_mm=(1.7, 1.6, 1.5),
        crop=(40, 36, 32),
        margin=4,
        workers=1,
        register="rigid",
        search_degrees=30,
    )


@pytest.fixture
def own(tmp_path):
    root = write_segmented(tmp_path / "cohort")
    return Data(
        root=str(root),
        cache=str(tmp_path / "cache"),
        landmarks=NAMES,
        spacing_mm=(1.0, 1.0, 1.0),
        crop=(8, 8, 8),
        margin=1,
        workers=1,
    )


def prepare_all(data, segments=True, maps=True):
    cohort = read_cohort(data)
    known = read_segments(cohort, data, maps=maps) if segments else None
    return prepare_cohort(cohort, data, known)


def digests(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in files
    }


def test_labels_lie_where_the_way_back_says(phantom):
    prepared = prepare_all(phantom)
    assert prepared.frame.segments == ()
    for case in prepared.cases.values():
        raw = read_scan(Path(phantom.root) / "segmentations" / f"{case.name}.nii.gz")
        found = case.segments.label_map()
        assert found.dtype == np.uint8 and found.shape == case.image().shape
        np.testing.assert_array_equal(case.segments.grid.shape, raw.voxels.shape)
        np.testing.assert_allclose(case.segments.grid.ijk_to_lps, raw.ijk_to_lps, atol=1e-9)
        # One by one: the voxel that a prepared one lies in.
        ijk = np.argwhere(np.ones(found.shape, bool))
        there = apply_affine(np.linalg.inv(raw.ijk_to_lps), apply_affine(case.ijk_to_lps, ijk))
        nearest = np.rint(there).astype(int)
        inside = ((nearest >= 0) & (nearest < raw.voxels.shape)).all(1)
        expected = np.zeros(len(ijk))
        expected[inside] = raw.voxels[tuple(nearest[inside].T)]
        expected[expected == 21] = 0
        np.testing.assert_array_equal(found.reshape(-1), expected)
        assert len(np.unique(found)) > 15
        # The attributes are the phantom's.
        known = json.loads((Path(phantom.root) / "anatomy" / f"{case.name}.json").read_text())
        there = np.array([*known["segment_present"].values()])
        np.testing.assert_array_equal(case.segments.present, there)
        np.testing.assert_array_equal(case.segments.absent, ~there)
        assert case.segments.values == tuple(range(1, 21))
        counts = [int((raw.voxels == value).sum()) for value in range(1, 21)]
        assert case.segments.voxels == tuple(counts)


def test_images_are_shared_with_methods_that_know_no_segments(own):
    # What is in those files does not matter: they are not read.
    table = Path(own.root) / "segmentations" / "labels.csv"
    text = table.read_text()
    table.write_text("nonsense")
    (Path(own.root) / "attributes.csv").write_text("nonsense")
    plain = prepare_all(own, segments=False)
    before = digests(own.cache)
    assert not any("segments" in name for name in before)
    assert all(case.segments is None for case in plain.cases.values())
    assert "segments" not in plain.table().splitlines()[0]
    table.write_text(text)
    (Path(own.root) / "attributes.csv").unlink()
    prepared = prepare_all(own)
    after = digests(own.cache)
    assert before.items() <= after.items()
    extra = {Path(name).parts[1] for name in after.keys() - before.keys()}
    assert extra == {"segments"} and len(after) - len(before) == 3 * 2 + 1
    for name, case in prepared.cases.items():
        assert dataclasses.replace(case, segments=None).folder == plain.cases[name].folder


def test_who_has_what_is_told_by_the_map(own):
    root = Path(own.root) / "segmentations"
    write_scan(root / "b.nii.gz", labels_of((5,)), PLACE)
    prepared = prepare_all(own)
    assert prepared.frame.segments == OWN
    known = {
        name: (case.segments.present.tolist(), case.segments.absent.tolist())
        for name, case in prepared.cases.items()
    }
    assert known["a"] == ([True, True, True], [False, False, False])
    # The stem is in everybody: it may lie outside. Of the last case nothing is known.
    assert known["b"] == ([False, True, False], [True, False, False])
    assert known["d"] == ([False] * 3, [False] * 3)
    nothing = prepared.cases["d"].segments
    assert nothing.file is None and nothing.source is None and nothing.grid.shape == SHAPE
    rows = list(csv.DictReader(prepared.table().splitlines()))
    told = {row["case"]: row["segments"].split(", b-")[0] for row in rows}
    assert told["b"] == "1 present, 1 absent, 1 unknown"
    assert told["d"] == "0 present, 0 absent, 3 unknown"


def test_what_attributes_say_counts_and_voxels_prove_presence(own):
    root = Path(own.root)
    write_scan(root / "segmentations" / "b.nii.gz", labels_of((5,)), PLACE)
    (root / "attributes.csv").write_text("case,one L,stem\nb,yes,no\nd,no,\n")
    prepared = prepare_all(own)
    known = {
        name: (case.segments.present.tolist(), case.segments.absent.tolist())
        for name, case in prepared.cases.items()
    }
    # Nothing is stated of "one R", but it is seen; "one L" is stated and not seen.
    assert known["b"] == ([True, True, False], [False, False, True])
    assert known["d"] == ([False] * 3, [True, False, False])
    # Who has no line is as the map tells.
    assert known["a"] == ([True] * 3, [False] * 3)
    assert prepared.notes() == [
        "b: 1 segment is stated to be present without a voxel in the label map (too thin, or "
        "outside of the scan)"
    ]


def test_attributes_alone_are_enough_for_methods_without_maps(own):
    root = Path(own.root)
    for path in (root / "segmentations").glob("*.nii.gz"):
        path.unlink()
    (root / "attributes.csv").write_text("case,stem\na,yes\nb,no\n")
    case = prepare_all(own, maps=False).cases["b"]
    assert case.segments.file is None and case.segments.absent.tolist() == [False, False, True]
    batch = read_case_and_attributes(case, np.random.default_rng(0))
    assert set(batch["targets"]) == {"segments_present", "segments_absent"}


def test_contradictions_and_bad_maps_are_named_together_and_no_case_is_written(own):
    root = Path(own.root)
    write_scan(root / "segmentations" / "b.nii.gz", labels_of((5, 77)), PLACE)
    (root / "attributes.csv").write_text("case,one L,stem\na,no,no\nb,no,no\n")
    with pytest.raises(ExceptionGroup) as caught:
        prepare_all(own)
    first, second = map(str, caught.value.exceptions)
    assert first == (
        f"{root}/segmentations/a.nii.gz: shows 'one L' (3 voxels), 'stem' (3 voxels), which "
        "attributes.csv says that case 'a' lacks; correct one of the two"
    )
    assert second.endswith("b.nii.gz: holds the value 77 (3 voxels), which no label table names")
    assert not list(Path(own.cache).rglob("image.npy"))


def test_a_second_start_reads_the_cache(own):
    prepare_all(own)
    before = digests(own.cache)
    prepared = prepare_all(own)
    assert digests(own.cache) == before and prepared.mended == ()


@pytest.mark.parametrize("what", ["map", "attributes", "table"])
def test_what_changed_is_made_anew_and_images_are_not(own, what):
    first = prepare_all(own)
    root = Path(own.root)
    if what == "map":
        write_scan(root / "segmentations" / "a.nii.gz", labels_of((5, 3)), PLACE)
    if what == "attributes":
        (root / "attributes.csv").write_text("case,stem\na,yes\n")
    if what == "table":
        table = root / "segmentations" / "labels.csv"
        table.write_text(table.read_text().replace("tip,no", "tip,yes"))
    second = prepare_all(own)
    changed = [
        n for n in CASES[:3] if second.cases[n].segments.file != first.cases[n].segments.file
    ]
    assert changed == (list(CASES[:3]) if what == "table" else ["a"])
    for name in CASES:
        assert second.cases[name].folder == first.cases[name].folder


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "json"])
def test_damaged_ones_are_made_anew_and_said(own, damage):
    first = prepare_all(own)
    file = first.cases["b"].segments.file
    content = file.read_bytes()
    target = file.with_name("segments.json") if damage == "json" else file
    if damage == "delete":
        file.unlink()
    else:
        bad = bytearray(target.read_bytes())
        bad[len(bad) // 2] ^= 1
        target.write_bytes(bad[: 100 if damage == "cut" else None])
    if damage in ("cut", "delete"):
        with pytest.raises(InputError, match="damaged prepared label map .*; delete its folder"):
            first.cases["b"].segments.label_map()
    second = prepare_all(own)
    assert len(second.mended) == 1 and str(target) in second.mended[0]
    assert file.read_bytes() == content
    assert prepare_all(own).mended == ()


def test_a_lost_image_takes_no_label_map_along(own):
    first = prepare_all(own)
    shutil.rmtree(first.cases["a"].folder)
    second = prepare_all(own)
    assert second.cases["a"].segments.file == first.cases["a"].segments.file
    np.testing.assert_array_equal(
        second.cases["a"].segments.label_map(), first.cases["a"].segments.label_map()
    )


def test_processes_give_the_same_bits_as_one(own, tmp_path):
    one = prepare_all(own)
    two = prepare_all(dataclasses.replace(own, workers=2, cache=str(tmp_path / "other")))
    for name in CASES[:3]:
        files = [p.cases[name].segments.file for p in (one, two)]
        assert files[0] != files[1] and files[0].read_bytes() == files[1].read_bytes()


def test_a_scheme_of_its_own_goes_with_the_model(own, phantom, tmp_path):
    prepared = prepare_all(own)
    save_frame(prepared.frame, prepared.landmarks, tmp_path / "frame")
    frame, landmarks = load_frame(tmp_path / "frame")
    scheme = scheme_of(landmarks, frame.segments)
    assert scheme.segments == OWN
    np.testing.assert_array_equal(scheme.mirrored_segments, [1, 0, 2])
    path = tmp_path / "frame" / "frame.json"
    path.write_text(path.read_text().replace('"tip"', '"top"', 1))
    refused(lambda: load_frame(tmp_path / "frame"), path, "lacks a field or has a wrong one")
    # The frames of others stay as they were.
    for data, segments in ((own, False), (phantom, True)):
        prepared = prepare_all(data, segments=segments)
        save_frame(prepared.frame, prepared.landmarks, tmp_path / "plain")
        assert "segments" not in json.loads((tmp_path / "plain" / "frame.json").read_text())


def test_the_circle_s_segments_with_landmarks_in_another_order_are_a_scheme_of_their_own(phantom):
    data = dataclasses.replace(phantom, landmarks=COW19.landmarks[::-1])
    prepared = prepare_all(data)
    assert prepared.frame.segments == COW19.segments
    assert scheme_of(prepared.landmarks, prepared.frame.segments).segments == COW19.segments


def test_targets_are_called_as_methods_call_them(own):
    case = prepare_all(own).cases["a"]
    batch = read_segmented_case(case, np.random.default_rng(0))
    assert set(batch["targets"]) == {
        method.SEGMENTS_PRESENT,
        method.SEGMENTS_ABSENT,
        method.SEGMENTATION,
    }
    plain = read_case(case, np.random.default_rng(0))
    assert plain.keys() == batch.keys() - {"targets"}
    for name, value in plain.items():
        np.testing.assert_array_equal(batch[name], value)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_all_the_way_to_random_views(phantom, flip):
    prepared = prepare_all(phantom)
    cases = prepared.split("train")
    stream = training_batches(
        cases, batch=2, seed=3, threads=2, prefetch=2, read=read_segmented_case
    )
    host = next(stream)
    drawn = host.pop(CASE)
    batch = Batch(**put_batch(data_mesh(), host))
    labels = batch.targets[method.SEGMENTATION]
    assert labels.dtype == jnp.uint8 and labels.shape == batch.image.shape[:-1]
    for row, index in enumerate(drawn):
        np.testing.assert_array_equal(labels[row], cases[index].segments.label_map())
        np.testing.assert_array_equal(
            batch.targets[method.SEGMENTS_ABSENT][row], cases[index].segments.absent
        )
    kinds = {method.SEGMENTS_PRESENT: BY_SEGMENT, method.SEGMENTS_ABSENT: BY_SEGMENT}
    kinds[method.SEGMENTATION] = LABELS
    task = Task(
        COW19,
        phantom.crop,
        phantom.margins,
        phantom.spacing_mm,
        Augment(translation_voxels=3, flip=flip),
        targets=kinds,
    )
    view = jax.jit(lambda key: augmented(task, batch, key))(jax.random.key(0))
    found = np.asarray(view.targets[method.SEGMENTATION])
    assert found.shape == (2, *phantom.crop)
    points = np.rint(np.asarray(view.landmarks_ijk)).astype(int)
    for row in range(2):
        # Whatever the view: a segment of that side is near the landmark where it ends.
        for k in map(COW19.landmark, ("BA tip", "ICA terminus R", "ICA terminus L")):
            around = found[(row, *(slice(max(c - 2, 0), c + 3) for c in points[row, k]))]
            assert np.isin(around, np.flatnonzero(COW19.incidence[:, k]) + 1).any()
    order = COW19.mirrored_segments if flip else np.arange(20)
    for name in (method.SEGMENTS_PRESENT, method.SEGMENTS_ABSENT):
        np.testing.assert_array_equal(view.targets[name], batch.targets[name][:, order])


def test_contact_sheets_show_label_maps(own, tmp_path):
    plain = write_contact_sheets(prepare_all(own, segments=False), tmp_path)[0].read_bytes()
    tinted = write_contact_sheets(prepare_all(own), tmp_path)[0].read_bytes()
    assert tinted != plain
    # Another map is another picture, although the images are the same.
    write_scan(Path(own.root) / "segmentations" / "a.nii.gz", labels_of((3,)), PLACE)
    assert write_contact_sheets(prepare_all(own), tmp_path)[0].read_bytes() != tinted


@pytest.mark.parametrize("change", ["map", "attributes"])
def test_other_label_maps_or_attributes_are_other_training_data(change, own):
    cases = prepare_all(own).split("train")
    before = fingerprint(cases, None)
    # As it is for methods that know no segments, and for label maps that lie elsewhere.
    plain = [dataclasses.replace(case, segments=None) for case in cases]
    assert fingerprint(plain, None) == fingerprint(
        prepare_all(own, segments=False).split("train"), None
    )
    assert fingerprint(prepare_all(own).split("train"), None) == before
    if change == "map":
        labels = labels_of()
        labels[0, 0, 0] = 5
        write_scan(Path(own.root) / "segmentations" / "a.nii.gz", labels, PLACE)
    else:
        (Path(own.root) / "segmentations" / "a.nii.gz").unlink()
        (Path(own.root) / "attributes.csv").write_text("case,stem\na,yes\n")
    after = fingerprint(prepare_all(own, maps=False).split("train"), None)
    assert after["training cases"] != before["training cases"]
    assert after["unpaired landmarks"] == before["unpaired landmarks"]


@dataclasses.dataclass
class Needy(HeatmapRegression):
    """Asks for more than it uses."""

    asks: tuple[str, ...] = ()

    @property
    def needs(self):
        return frozenset(self.asks)


@pytest.mark.parametrize(
    "asks, kept", [((), False), ((method.SEGMENTS,), True), ((method.LABEL_MAPS,), True)]
)
def test_only_methods_that_ask_get_segments(asks, kept, own, tmp_path, capfd):
    data = dataclasses.replace(own, margin=4)
    experiment = Experiment(name="own", data=data, phantom=None, method=Needy(asks=asks))
    run = workflow.prepare(experiment, tmp_path / "run")
    assert all((case.segments is not None) == kept for case in run.prepared.cases.values())
    assert bool([*Path(own.cache).glob("*/segments")]) == kept
    tree = json.loads((tmp_path / "run" / "preparation" / "frame.json").read_text())
    assert ("segments" in tree) == kept
    note = "note: 'Background' of labels.csv: no segments, taken as background in label maps"
    assert (note in capfd.readouterr().out) == kept
