"""What files say of segments: label maps, tables and attributes; every mistake is named."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from segmented import (
    CASES,
    IN_ORDER,
    NAMES,
    PLACE,
    SEGMENTS,
    SHAPE,
    labels_of,
    write_cohort,
    write_segmented,
)

from jaxmark.config import Data
from jaxmark.core.anatomy import COW19, Segment
from jaxmark.core.grids import Grid
from jaxmark.data.attributes import read_attributes, write_attributes
from jaxmark.data.cohort import Cohort, RawCase, read_cohort
from jaxmark.data.label_tables import Label, read_label_tables
from jaxmark.data.layouts import find_label_maps
from jaxmark.data.scans import write_scan
from jaxmark.data.segmentations import read_label_map, read_segments
from jaxmark.system.files import write_json

# Of a cohort whose label maps alone say what people lack.
UNSEEN = "no attributes.csv: a segment that may be missing and has no voxels counts as absent"


@pytest.fixture
def root(tmp_path):
    return write_segmented(tmp_path / "cohort")


def found(root, maps=True, **settings):
    data = Data(root=str(root), **{"landmarks": NAMES, **settings})
    return read_segments(read_cohort(data), data, maps=maps)


def read_map(root, case="a", **changes):
    grid = Grid(SHAPE, PLACE)
    segments = dataclasses.replace(found(root), **changes)
    scan = root / "images" / f"{case}.nii.gz"
    path = root / "segmentations" / f"{case}.nii.gz"
    labels, voxels = read_label_map(path, scan, grid, segments)
    np.testing.assert_array_equal(np.bincount(labels.ravel(), minlength=4)[1:], voxels)
    return labels


def test_a_table_states_segments_and_their_values(root):
    known = found(root)
    # In the order of the values.
    assert known.segments == (SEGMENTS[1], SEGMENTS[0], SEGMENTS[2])
    assert known.values == (3, 5, 9) and known.background == (12,)
    assert known.notes[0].startswith("'Background' of labels.csv: no segments, taken as background")
    assert known.cases["a"].label_map == root / "segmentations" / "a.nii.gz"
    assert known.cases["d"].label_map is None and known.cases["a"].stated is None
    labels = read_map(root)
    np.testing.assert_array_equal(np.unique(labels), [0, 1, 2, 3])
    np.testing.assert_array_equal(labels == 2, labels_of() == 5)
    assert labels.dtype == np.uint8


def test_the_circle_of_willis_keeps_its_order_whatever_its_labels_are(root, tmp_path):
    table = root / "segmentations" / "labels.csv"
    table.unlink()
    names = ["background", "other", *(s.name for s in COW19.segments[::-1]), "ignore"]
    write = (root / "segmentations" / "dataset.json").write_text
    write(json.dumps({"labels": {name: value for value, name in enumerate(names)}}))
    known = found(root)
    # Ends are those that the cohort has.
    assert [s.name for s in known.segments] == [s.name for s in COW19.segments]
    assert known.values == tuple(range(21, 1, -1)) and known.background == (1, 22)
    assert known.notes == (
        "'other' of dataset.json, 'ignore' of dataset.json: no segments, taken as background in "
        "label maps",
        UNSEEN,
    )
    assert all(segment.ends == () for segment in known.segments)
    # Some of them are a scheme of their own.
    write(json.dumps({"labels": {"background": 0, "A1 R": 2, "new": 1, "ignore": 3}}))
    known = found(root)
    assert known.segments == (Segment("new", ()), Segment("A1 R", (), True))
    assert known.values == (1, 2) and known.background == (3,)
    assert known.notes == (
        "'ignore' of dataset.json: no segments, taken as background in label maps",
        UNSEEN,
    )


def test_segments_are_chosen_by_name_and_in_order(root):
    (root / "attributes.csv").write_text("case,one R,one L,stem\na,yes,no,\n")
    chosen = {"root": str(root), "segments": ("stem", "one L")}
    known = read_segments(read_cohort(Data(root=str(root))), Data(**chosen), maps=True)
    assert known.segments == (SEGMENTS[2], SEGMENTS[1])
    # What is not asked for is background in maps, and nothing is stated of it.
    assert known.values == (9, 3) and set(known.background) == {12, 5}
    np.testing.assert_array_equal(known.cases["a"].stated, [0, -1])
    for names, problem in [
        (("steam",), "'steam' is no segment of the label table; the nearest name is 'stem'"),
        (("stem", "stem"), "names 'stem' 2 times"),
    ]:
        data = dataclasses.replace(Data(**chosen), segments=names)
        refused(
            lambda data=data: read_segments(read_cohort(Data(root=str(root))), data, maps=True),
            f"config.data.segments: {problem}",
        )


def test_a_table_of_some_of_the_circle_s_segments_is_told_from_all(tmp_path):
    names = [segment.name for segment in COW19.segments[::2]]
    path = tmp_path / "segmentations" / "dataset.json"
    write_json(path, {"labels": {name: value for value, name in enumerate(names, start=1)}})
    (tmp_path / "attributes.csv").write_text("case,A1 R\na,yes\n")
    points = np.zeros((19, 3))
    case = RawCase("a", path, points, points[:, 0] == 0, points[:, 0] > 0, None, COW19.landmarks)
    splits = {"train": ("a",), "val": (), "test": ()}
    cohort = Cohort(COW19.landmarks, {"a": case}, splits)
    known = read_segments(cohort, Data(root=str(tmp_path)), maps=False)
    # The right side and the ACoA, with ends as in the whole circle.
    assert known.segments == COW19.segments[::2]
    (note,) = known.notes
    assert note.startswith("dataset.json (no 'C5 L', 'C6 L', 'C7 L', 'M1 L', 'A1 L' and more): seg")


@pytest.mark.parametrize(
    "name, text",
    [
        ("dataset.json", '{"labels": {"background": 0, "one": 1, "two": 2}}'),
        ("dataset.json", '{"labels": {"0": "background", "2": "two", "1": "one"}}'),
        ("dataset.json", '{"labels": {"background": "0", "one": "1", "two": "2"}}'),
        ("labels.csv", "label;name\r\n2;two\r\n1;one\r\n"),
        ("labels.csv", "\ufeffname,label\ntwo,2.0\none,1.0\nBackground,0\n"),
        ("a_dseg.tsv", "index\tname\tcolor\n1\tone\t#ff0000\n2\ttwo\t#00ff00\n"),
    ],
)
def test_formats_of_tables(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert [label for label in read_label_tables([path]) if not label.is_background] == [
        Label(1, "one"),
        Label(2, "two"),
    ]


def test_tables_that_agree_are_one_and_that_with_ends_counts(root):
    dataset = root / "dataset.json"
    dataset.write_text(json.dumps({"labels": {"one R": 5, "one L": 3, "stem": 9}}))
    assert found(root).segments[0] == SEGMENTS[1]
    # nnU-Net's file may be there for its channels alone.
    dataset.write_text(json.dumps({"channel_names": {"0": "MRA"}}))
    found(root)
    dataset.write_text(json.dumps({"labels": {"one R": 5, "one L": 4, "stem": 9}}))
    refused(lambda: found(root), dataset, "names other labels than", "labels.csv; keep one")


@pytest.mark.parametrize(
    "name, text, problem",
    [
        ("dataset.json", '{"labels": [1]}', 'labels is not an object like {"background": 0'),
        ("dataset.json", '{"labels": {"a": [1, 2]}}', "label 'a' is a region of several values"),
        ("dataset.json", '{"labels": {"a": 1.5}}', "label 'a' is 1.5, not a whole number from 0"),
        ("dataset.json", '{"labels": {"a": -1}}', "label 'a' is -1, not a whole number from 0"),
        ("dataset.json", '{"labels": {"a": true}}', "label 'a' is True, not a whole number"),
        ("dataset.json", '{"labels": {"a": 1, "a": 2}}', "has 'a' twice"),
        ("dataset.json", '{"labels": {"a": 1, "b": 1}}', "label 1 comes twice, as 'a' and 'b'"),
        ("dataset.json", '{"labels": {"a": 4000000000}}', "labels are under 2147483648"),
        ("dataset.json", '{"labels": {"x": "a"}}', "a key of labels is 'x', not a whole number"),
        ("dataset.json", '{"labels": {"background": 0}}', "names no label beside the background"),
        ("labels.csv", "label,name\n1,a\n2,a\n", "two labels are called 'a'"),
        ("labels.csv", "label,name\n1,a\n2,\n", "the name of label 2 is ''"),
        ("labels.csv", "label,name\nx,a\n", "line 2: label is 'x', not a whole number from 0"),
        ("labels.csv", "label,title\n1,a\n", "has no columns label and name; its columns are"),
        ("a_dseg.tsv", "name\tcolor\na\tred\n", "has no columns index and name; its columns"),
        ("labels.csv", "label,name,ends\n1,a,x;y;z\n", "line 2: ends is 'x;y;z'; a segment has"),
        (
            "labels.csv",
            "label,name,may_be_missing\n1,a,no\n2,b,perhaps\n",
            "line 3: may_be_missing",
        ),
        ("labels.csv", "label,name\n" + "".join(f"{i},{i}a\n" for i in range(1, 257)), "names 256"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, name, text, problem):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    refused(lambda: read_label_tables([path]), path, problem)


def test_ends_are_landmarks(root):
    table = root / "segmentations" / "labels.csv"
    table.write_text("label,name,ends\n5,one R,A R;tipp\n")
    problem = "label 5 ('one R') ends at 'tipp', which is no landmark; the nearest name is 'tip'"
    refused(lambda: found(root), table, problem)


def test_an_empty_cell_of_a_table_states_nothing(root):
    names = [segment.name for segment in COW19.segments]
    table = root / "segmentations" / "labels.csv"
    rows = [f"{value},{name},," for value, name in enumerate(names, start=1)]
    rows[8] = "9,A1 R,tip,no"
    table.write_text("\n".join(["label,name,ends,may_be_missing", *rows, ""]))
    known = {segment.name: segment for segment in found(root).segments}
    assert known["A1 R"] == Segment("A1 R", ("tip",), False)
    # Landmarks of the circle are none of this cohort's.
    assert known["A1 L"] == Segment("A1 L", (), True)


def test_without_a_table_nobody_knows_what_labels_mean(root):
    (root / "segmentations" / "labels.csv").unlink()
    problem = (
        "has label maps, but no table of the segments: write segmentations/labels.csv (columns"
    )
    refused(lambda: found(root), root, problem)
    for path in (root / "segmentations").iterdir():
        path.unlink()
    refused(lambda: found(root), root, "has no label maps (segmentations/<case>.nii.gz, nnU-Net's")
    problem = "_dseg.nii.gz), and no attributes.csv: one of them the method learns from"
    refused(lambda: found(root, maps=False), root, problem)
    (root / "attributes.csv").write_text("case,one R\na,yes\n")
    problem = "has attributes.csv, but no table of the segments: write segmentations/labels.csv"
    refused(lambda: found(root, maps=False), root, problem)


def test_nnunet_and_bids(tmp_path):
    nnunet = tmp_path / "nnunet"
    write_cohort(nnunet, images="imagesTr/{}_0000.nii.gz", landmarks="labelsTr/{}.mrk.json")
    for case in CASES:
        folder = "labelsTs" if case == "d" else "labelsTr"
        write_scan(nnunet / folder / f"{case}.nii.gz", labels_of((1, 2)), PLACE)
    tree = {"labels": {"background": 0, "x": 1, "y": 2}, "file_ending": ".nii.gz"}
    (nnunet / "dataset.json").write_text(json.dumps(tree))
    known = found(nnunet)
    assert [s.name for s in known.segments] == ["x", "y"]
    assert known.cases["d"].label_map == nnunet / "labelsTs" / "d.nii.gz"

    bids = tmp_path / "bids"
    cases = [f"sub-{case}" for case in CASES]
    write_cohort(bids, cases, "{0}/anat/{0}_angio.nii.gz", "{0}/anat/{0}_angio.mrk.json")
    arteries = bids / "derivatives" / "arteries"
    for case in cases:
        write_scan(arteries / case / f"{case}_desc-cow_dseg.nii.gz", labels_of((1, 2)), PLACE)
        # One a case, and all alike.
        table = arteries / case / f"{case}_desc-cow_dseg.tsv"
        table.write_text("index\tname\n1\tx\n2\ty\n")
    known = found(bids)
    assert [s.name for s in known.segments] == ["x", "y"]
    assert known.notes == (
        "label table: says of no segment that it may be missing, so one without voxels counts as "
        "not known (labels.csv has a column may_be_missing; or write attributes.csv)",
    )
    assert known.cases["sub-b"].label_map.name == "sub-b_desc-cow_dseg.nii.gz"
    table.write_text("index\tname\n1\ty\n2\tx\n")
    refused(lambda: found(bids), table, "names other labels than")


def test_what_looks_like_a_label_map_and_is_not_read_is_said(root):
    (root / "segmentations" / "d.nii.zip").touch()
    line = found(root).notes[0]
    assert line.startswith(f"{root}/segmentations: 1 file looks like an image and is not read: d.")


def test_label_maps_are_of_a_case_and_in_one_place(root):
    stray = root / "segmentations" / "e.nii.gz"
    write_scan(stray, labels_of(), PLACE)
    refused(lambda: found(root), stray, "case 'e' has a label map but no image; the nearest name")
    stray.unlink()
    write_scan(root / "labelsTr" / "a.nii.gz", labels_of(), PLACE)
    both = "has label maps in two places, segmentations/a.nii.gz and labelsTr/a.nii.gz; keep one"
    refused(lambda: found(root), root, both)
    (root / "labelsTr" / "a.nii.gz").unlink()
    for folder in ("x", "y"):
        write_scan(root / "derivatives" / folder / "sub-a_dseg.nii.gz", labels_of(), PLACE)
    second = root / "derivatives" / "y" / "sub-a_dseg.nii.gz"
    refused(lambda: find_label_maps(root, ["sub-a"]), second, "has a second label map")


def test_training_cases_need_what_is_learned(root):
    (root / "segmentations" / "b.nii.gz").unlink()
    problem = "1 of the 2 training cases has no label map: b; add them, or leave these cases out"
    refused(lambda: found(root), root, problem)
    problem = "1 of the 2 training cases has no label map and no known attribute: b; add"
    refused(lambda: found(root, maps=False), root, problem)
    # Nothing is known of it, although it has a line.
    (root / "attributes.csv").write_text("case,stem\nb,\n")
    refused(lambda: found(root, maps=False), root, problem)
    (root / "attributes.csv").write_text("case,stem\nb,yes\n")
    assert found(root, maps=False).cases["b"].stated.tolist() == [0, 0, 1]
    for path in (root / "segmentations").glob("*.nii.gz"):
        path.unlink()
    (root / "attributes.csv").write_text("case,stem\nb,yes\na,1\n")
    known = found(root, maps=False)
    assert known.values == () and known.cases["a"].stated.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "case,stem,one R,one L\na,yes,no,\nb,1,0,?\n",
        "\ufeffPatient;one R;stem\r\na.nii.gz;FALSE;True\r\nb_0000.nii.gz;absent;Present\r\n",
        "sep=;\ncase;segment;present\nb;one R;no\na;stem;yes\na;one R;0.0\nb;stem;1.0\na;one L;\n",
        ",stem,one R\na,1,0\nb,1,0\n,,\n",
    ],
)
def test_attributes_are_read_as_people_write_them(tmp_path, text):
    path = tmp_path / "attributes.csv"
    path.write_bytes(text.encode())
    known, _ = read_attributes(path, IN_ORDER, CASES)
    assert {case: states.tolist() for case, states in known.items()} == {
        case: [0, -1, 1] for case in "ab"
    }


def test_attributes_come_back(tmp_path):
    present = np.random.default_rng(0).random((4, 3)) < 0.5
    path = tmp_path / "attributes.csv"
    write_attributes(path, IN_ORDER, dict(zip(CASES, present, strict=True)))
    known, notes = read_attributes(path, IN_ORDER, CASES)
    assert notes == ()
    np.testing.assert_array_equal(np.stack([known[c] for c in CASES]), np.where(present, 1, -1))


@pytest.mark.parametrize(
    "text, problem",
    [
        ("case,stem\nx,yes\n", "line 2: case 'x' has no image; the nearest name is 'd'"),
        ("case,stems\na,yes\n", "column 'stems' is no segment; the nearest name is 'stem'"),
        ("case,stem\na,yes\nb,maybe\n", "line 3: stem is 'maybe', not yes, no or empty"),
        ("case,stem\na,yes\na,yes\n", "line 3: case 'a' comes a second time"),
        ("case,stem,stem\na,yes,no\n", "has two columns 'stem'"),
        ("case,stem\na,yes,no\n", "line 2 has 3 cells, the header 2"),
        ("stem,one R\nyes,no\n", "has no column 'case' (or subject, patient, image ...)"),
        ("case,segment\na,stem\n", "has a column 'segment', but no column 'present'"),
        (
            "case,segment,present\na,one,yes\n",
            "line 2: segment 'one' is no segment; the nearest name is 'one R'",
        ),
        ("case,segment,present\na,stem,2\n", "line 2: present is '2', not yes, no or empty"),
        (
            "case,segment,present\na,stem,1\na,stem,0\n",
            "line 3: segment 'stem' of 'a' comes twice",
        ),
        ("", "has no header line"),
    ],
)
def test_what_is_wrong_with_attributes_is_said(tmp_path, text, problem):
    path = tmp_path / "attributes.csv"
    path.write_text(text, encoding="utf-8")
    refused(lambda: read_attributes(path, IN_ORDER, CASES), path, problem)


def test_a_label_map_lies_on_its_scan_s_grid(root):
    path = root / "segmentations" / "a.nii.gz"
    write_scan(path, labels_of()[:, :7], PLACE)
    both = "it has 9 x 7 x 7 voxels of 1 x 1.2 x 1.5 mm from LPS [-6.0, -4.0, 3.0] mm, the scan has"
    refused(lambda: read_map(root), path, "is on another grid than its scan a.nii.gz", both)
    # Rounding in a header is none of it.
    moved = PLACE.copy()
    moved[:3, 3] += 0.05
    write_scan(path, labels_of(), moved)
    read_map(root)
    moved[2, 3] += 0.4
    write_scan(path, labels_of(), moved)
    refused(lambda: read_map(root), path, "from LPS [-5.95, -3.95, 3.45] mm", "0.46 mm apart")
    # The same voxels the other way round are another grid, too.
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    write_scan(path, labels_of(), PLACE @ flip)
    refused(lambda: read_map(root), path, "their corners lie up to 8.00 mm apart")


def test_label_maps_hold_the_values_of_the_table(root):
    path = root / "segmentations" / "a.nii.gz"
    write_scan(path, labels_of((5, 4, 77)), PLACE)
    problem = "holds values 4 (3 voxels), 77 (3 voxels), which no label table names"
    refused(lambda: read_map(root), path, problem)
    write_scan(path, labels_of((5, 12)).astype(np.int16) * -1, PLACE)
    refused(lambda: read_map(root), path, "holds values -12 (3 voxels), -5 (3 voxels)")
    # An empty one is fine, and so are numbers with a point.
    write_scan(path, np.zeros(SHAPE, np.uint8), PLACE)
    assert not read_map(root).any()
    write_scan(path, labels_of().astype(np.float32), PLACE)
    np.testing.assert_array_equal(np.unique(read_map(root)), [0, 1, 2, 3])
    blurred = labels_of().astype(np.float32)
    blurred[4, 4, 4], blurred[5, 5, 5] = 2.5, np.nan
    write_scan(path, blurred, PLACE)
    problem = "2 voxels are no labels: the first, 2.5 at (4, 4, 4), is not a whole number"
    refused(lambda: read_map(root), path, problem)
    path.write_bytes(path.read_bytes()[:-20])
    refused(lambda: read_map(root), path, "truncated or damaged")


def test_paths_are_of_the_cohort(root):
    assert {Path(c.label_map).parent for c in found(root).cases.values() if c.label_map} == {
        root / "segmentations"
    }
