"""DICOM as archives give it: multi-frame files, series with neighbours, tilted gantries."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused
from scipy.ndimage import map_coordinates

from experiments.dicom_files import (
    ENHANCED_CT,
    ENHANCED_MR,
    STORAGE,
    element,
    enhanced,
    packed,
    part10,
    single,
)
from jaxmark.config import Data
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import write_mrk_json
from jaxmark.data.layouts import find_layout
from jaxmark.data.scans import find_scans, from_image, read_scan, search_below, write_scan
from jaxmark.results.batch import scans_at
from jaxmark.system.fingerprints import file_state

COLUMNS, ROWS, SLICES = 7, 6, 5
FRAMES = np.random.default_rng(0).integers(0, 900, (SLICES, ROWS, COLUMNS)).astype(np.int16)
VOXELS = FRAMES.transpose(2, 1, 0).astype(np.float32)
# Rows, columns and normal of an oblique frame.
X, Y = np.array([0.8, 0.6, 0.0]), np.array([-0.36, 0.48, -0.8])
NORMAL = np.cross(X, Y)
SIX = np.concatenate([X, Y])
ORIGIN = np.array([-12.5, 30.25, 7.0])
# Between rows, between columns, between slices.
SPACING, STEP_MM = (0.5, 0.75), 1.5
POSITIONS = ORIGIN + np.arange(SLICES)[:, None] * STEP_MM * NORMAL
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.column_stack([X * SPACING[1], Y * SPACING[0], NORMAL * STEP_MM])
AFFINE[:3, 3] = ORIGIN


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def volume(**settings) -> bytes:
    frames, positions = settings.pop("frames", FRAMES), settings.pop("positions", POSITIONS)
    return enhanced(frames, positions, settings.pop("orientation", SIX), SPACING, **settings)


def series(folder: Path, uid: str = "1.2.826.8", prefix: str = "IM", **settings) -> Path:
    """Slices of the same volume, a file each, in an order of names that is not theirs."""
    positions, count = settings.pop("positions", POSITIONS), settings.pop("count", SLICES)
    for k in range(count):
        content = single(FRAMES[k], positions[k], SIX, SPACING, uid=uid, **settings)
        written(folder / f"{prefix}{9 - k}", content)
    return folder


def localizer(folder: Path, uid: str = "1.2.826.99") -> None:
    for k, six in enumerate(np.eye(3)[[[0, 1], [1, 2], [0, 2]]].reshape(3, 6)):
        content = single(
            FRAMES[k], ORIGIN, six, SPACING, uid=uid, description="localizer", number="0"
        )
        written(folder / f"LOC{k}.dcm", content)


def same(scan, voxels=VOXELS, affine=AFFINE) -> None:
    assert scan.voxels.dtype == np.float32 and scan.voxels.strides[0] == 4
    np.testing.assert_array_equal(scan.voxels, voxels)
    np.testing.assert_allclose(scan.ijk_to_lps, affine, atol=1e-6)


# Multi-frame files


@pytest.mark.parametrize("sop_class", [ENHANCED_MR, ENHANCED_CT, f"{STORAGE}4.4", f"{STORAGE}130"])
def test_an_enhanced_volume_is_read_as_simpleitk_reads_it(tmp_path, sop_class):
    path = written(tmp_path / "IM_0001", volume(sop_class=sop_class))
    scan, expected = read_scan(path), from_image(sitk.ReadImage(str(path)))
    same(scan)
    same(scan, expected.voxels, expected.ijk_to_lps)
    assert scan.notes == ()


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [3, 1, 0, 4, 2]])
def test_frames_may_be_stored_in_any_order(tmp_path, order):
    turns = np.tile(SIX, (SLICES, 1))
    content = volume(frames=FRAMES[order], positions=POSITIONS[order], orientation=turns)
    same(read_scan(written(tmp_path / "a.dcm", content)))


def test_a_scale_of_all_frames_is_applied(tmp_path):
    path = written(tmp_path / "a.dcm", volume(rescale=[(2.5, -1024)]))
    same(read_scan(path), VOXELS * 2.5 - 1024)


def test_each_frame_has_its_own_scale(tmp_path):
    slopes, intercepts = np.array([1.5, 2, 0.5, 4, 1]), np.array([0, 8, -16, 32, 1])
    order = [2, 0, 1, 4, 3]
    content = volume(
        frames=FRAMES[order],
        positions=POSITIONS[order],
        rescale=[(slopes[k], intercepts[k]) for k in order],
    )
    same(read_scan(written(tmp_path / "a.dcm", content)), VOXELS * slopes + intercepts)


def test_packed_frames_are_read_and_missing_ones_refused(tmp_path):
    path = written(tmp_path / "a.dcm", packed(volume(), FRAMES))
    same(read_scan(path))
    written(path, packed(volume(), FRAMES[:-1]))
    refused(lambda: read_scan(path), path, "truncated or damaged")
    # GDCM divides by the number of segments, and jumps to where they begin.
    good = packed(volume(), FRAMES)
    table = struct.pack("<2I", 2, 64)
    assert good.count(table) == SLICES
    for bad in ((0, 64), (16, 64), (2, 1 << 31), (2, 60)):
        written(path, good.replace(table, struct.pack("<2I", *bad)))
        refused(lambda: read_scan(path), path, "a frame's run lengths are not where it states")


UNEVEN = POSITIONS + np.array([0, 0, 0, 0, 1])[:, None] * NORMAL
TURNED = np.tile(SIX, (SLICES, 1))
TURNED[3, :3] *= -1
BAD = {
    "uneven": (lambda: volume(positions=UNEVEN), "the step from slice 4 to 5"),
    "phases": (lambda: volume(positions=POSITIONS[[0, 1, 2, 0, 1]]), "5 frames at 3 places"),
    "stacks": (lambda: volume(stacks="11122"), "holds 2 stacks of frames (1; 2)"),
    "turned": (lambda: volume(orientation=TURNED), "several stacks: frame 4 has another direction"),
    "no places": (
        lambda: volume().replace(b"\x20\0\x32\0DS", b"\x20\0\x33\0DS"),
        "states no image position (0020,0032) of frame 1",
    ),
    "no direction": (
        lambda: volume().replace(b"\x20\0\x37\0DS", b"\x20\0\x38\0DS"),
        "states no image orientation (0020,0037) of frame 1",
    ),
    "a long direction": (lambda: volume(orientation=SIX * 2), "image orientation of length"),
    "a place that is no number": (
        lambda: volume(positions=POSITIONS * [1, np.nan, 1]),
        "states 3 numbers as image position (0020,0032) of frame 1",
    ),
    "far away": (lambda: volume(positions=POSITIONS + 2e7), "states the origin"),
    "more frames than places": (lambda: volume(positions=POSITIONS).replace(
        element(0x28, 8, "IS", 5), element(0x28, 8, "IS", 6)), "6 frames, but states places of 5"),
    "a part of a concatenation": (
        lambda: volume(extra=element(0x20, 0x9161, "UI", "1.2") + element(0x20, 0x9163, "US", 3)),
        "one part of 3 of a volume in several files",
    ),
    "a cine": (lambda: volume(sop_class=f"{STORAGE}3.1"), "is multi-frame DICOM of a class"),
    "a segmentation": (lambda: volume(sop_class=f"{STORAGE}66.4"), "no scan but a segmentation"),
    "cut": (lambda: volume()[:-20], "(7fe0,0010) states 420 bytes, more than there are"),
    "few voxels": (
        lambda: volume().replace(element(0x28, 0x10, "US", 6), element(0x28, 0x10, "US", 600)),
        "less pixel data",
    ),
    "colour": (
        lambda: volume().replace(element(0x28, 2, "US", 1), element(0x28, 2, "US", 3)),
        "3 numbers a voxel",
    ),
    "no number of frames": (
        lambda: volume().replace(element(0x28, 8, "IS", 5), element(0x28, 8, "IS", "x")),
        "states 'x' frames",
    ),
    "too few": (lambda: volume(frames=FRAMES[:3], positions=POSITIONS[:3]), "(7, 6, 3) voxels"),
    "a scale of 0": (lambda: volume(rescale=[(0, 0)]), "rescale slope of 0"),
    "a scale that is no number": (lambda: volume(rescale=[("x", 0)]), "that is no number"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_frames_that_are_no_volume_are_refused(tmp_path, what, capfd):
    content, problem = BAD[what]
    path = written(tmp_path / "a.dcm", content())
    refused(lambda: read_scan(path), path, problem)
    assert capfd.readouterr().err == ""


def test_a_multi_frame_file_is_a_scan_wherever_it_lies(tmp_path):
    for name in ("images/p1.dcm", "images/p2", "images/p3/IM_0001", "images/1.2.840.5"):
        written(tmp_path / name, volume())
    # Slices that lie loose are none.
    series(tmp_path / "images", prefix="loose")
    found = find_scans(tmp_path / "images")
    assert list(found) == ["1.2.840.5", "p1", "p2", "p3"]
    for path in found.values():
        same(read_scan(path))
    assert find_layout(tmp_path).images == found
    assert scans_at(tmp_path / "images/p1.dcm") == {"p1": tmp_path / "images/p1.dcm"}
    assert scans_at(tmp_path / "images/p2") == {"p2": tmp_path / "images/p2"}
    assert scans_at(tmp_path / "images/p3") == {"p3": tmp_path / "images/p3"}


def test_several_multi_frame_files_of_a_folder_are_scans(tmp_path):
    written(tmp_path / "P/IM1", volume(description="TOF"))
    written(tmp_path / "P/IM2", volume(description="TOF", uid="1.2.826.9"))
    written(tmp_path / "P/IM3", volume(description="T1"))
    # An ultrasound's frames are no slices.
    written(tmp_path / "P/IM4", volume(sop_class=f"{STORAGE}3.1"))
    found = search_below(tmp_path).scans
    assert found == {f"P-{part}": tmp_path / "P" / f"IM{n}" for part, n in
                     (("T1", 3), ("TOF-IM1", 1), ("TOF-IM2", 2))}  # fmt: skip
    refused(lambda: read_scan(tmp_path / "P"), "holds 3 DICOM series", "'T1', IM3 (5 frames)")


# Neighbours of a series


def test_what_lies_beside_a_series_is_named(tmp_path):
    folder = series(tmp_path / "P1", description="TOF", number="5")
    localizer(folder)
    for name, end in [("SR.dcm", "88.22"), ("PR", "11.1"), ("KO", "88.59"), ("PDF", "104.1")]:
        written(folder / name, single(None, uid=f"1.{end}", sop_class=STORAGE + end))
    scan = read_scan(folder)
    same(scan)
    (note,) = scan.notes
    assert note.startswith(
        "not part of this scan: series 'localizer', number 0, 1.2.826.99 (3 slices): fewer than 4 "
        "slices; KO (a key object selection); PDF (an encapsulated document); PR (a presentation"
    )
    assert search_below(tmp_path).scans == {"P1": folder}
    # A directory, in a name that is not its own.
    record = element(4, 0x1220, "SQ", element(4, 0x1430, "CS", "PATIENT"))
    written(folder / "A", part10("1.2.840.10008.1.3.10", record))
    assert "; A (a directory); " in read_scan(folder).notes[0]
    (folder / "A").unlink()
    for n in range(4):
        written(folder / f"Z{n}", single(None, uid="1.9", sop_class="1.3.12.2.1107.5.9.1"))
    (note,) = read_scan(folder).notes
    assert note.endswith("; SR.dcm (a structured report); and 4 more")


@pytest.mark.parametrize(
    ("kind", "flaw"),
    [
        ("turned", "its slices are not parallel"),
        ("scout", "a localizer"),
        ("screenshots", "its images state no place"),
    ],
)
def test_images_that_are_no_volume_are_left_out(tmp_path, kind, flaw):
    folder = series(tmp_path / "P1")
    for k in range(9):
        angle = k * 0.3 if kind == "turned" else 0
        six = [np.cos(angle), np.sin(angle), 0, 0, 0, 1]
        place = None if kind == "screenshots" else [0, k, 0]
        image_type = "ORIGINAL\\PRIMARY\\LOCALIZER" if kind == "scout" else "DERIVED"
        content = single(FRAMES[0], place, six, uid="1.2.826.9", image_type=image_type)
        written(folder / f"X{k}", content)
    scan = read_scan(folder)
    same(scan)
    assert scan.notes == (f"not part of this scan: series 1.2.826.9 (9 slices): {flaw}",)


def test_damage_is_not_left_out(tmp_path):
    """Beside other things, a slice that is damaged, missing or of no series is still refused."""
    folder = series(tmp_path / "P1")
    localizer(folder)
    good = (folder / "IM7").read_bytes()
    for content, problem in [
        (good[:-20], "more than there are"),
        (good[:200], "truncated or damaged"),
        (b"", "truncated or damaged"),
        (good[:140] + element(9, 9, "UN", b"x")[:8] + b"\xff" * 8 + good[140:], "damaged"),
        (good.replace(b"\x20\0\x0e\0UI", b"\x20\0\x0f\0UI"), "states no series"),
        (good.replace(element(0x28, 0x10, "US", 6), b""), "damaged, or not a DICOM image"),
    ]:
        # A file that is no DICOM any more is known by its name alone.
        (folder / "IM7").unlink(missing_ok=True)
        path = written(folder / "IM7.dcm", content)
        refused(lambda: read_scan(folder), path, problem)  # noqa: B023
        assert search_below(tmp_path).scans == {"P1": folder}
    path.unlink()
    refused(lambda: read_scan(folder), folder, "a slice is missing")


def test_a_long_head_is_read_to_its_end(tmp_path):
    folder = series(tmp_path / "P1")
    for path in sorted(folder.iterdir())[:3]:
        content = path.read_bytes()
        at = content.index(b"\x20\0\x0d\0UI")
        long = element(9, 0x1001, "UN", bytes(1 << 17))
        path.write_bytes(content[:at] + long + content[at:])
    same(read_scan(folder))


def test_folders_without_a_volume_are_left_out_and_named(tmp_path, capsys):
    series(tmp_path / "P1/S1")
    written(tmp_path / "P1/S2/SR.dcm", single(None, sop_class=f"{STORAGE}88.11"))
    localizer(tmp_path / "P1/S3")
    assert list(scans_at(tmp_path)) == ["S1"]
    warning = capsys.readouterr().err
    assert warning == (
        f"warning: left out, {tmp_path}/P1/S2: no DICOM volume: SR.dcm (a structured report); "
        f"{tmp_path}/P1/S3: no DICOM volume: series 'localizer', number 0, 1.2.826.99 (3 slices): "
        "fewer than 4 slices\n"
    )
    folder = tmp_path / "P1/S2"
    refused(lambda: scans_at(folder), folder, "holds no scans (--input)", "a structured report")
    refused(lambda: read_scan(folder), folder, "holds no DICOM image: SR.dcm (a structured report)")
    refused(lambda: scans_at(tmp_path / "P1/S3"), "holds no scans", "fewer than 4 slices")


# Several series


def patient(folder: Path) -> Path:
    series(folder, "1.2.826.8.11", "A", description="TOF 3D/multi-slab", number="5")
    series(folder, "1.2.826.8.12", "B", description="T1", number="6", count=4)
    localizer(folder)
    return folder


def test_each_series_is_a_scan_of_a_batch(tmp_path):
    folder = patient(tmp_path / "P1")
    found = search_below(tmp_path).scans
    assert list(found) == ["P1-T1", "P1-TOF_3D_multi-slab"]
    assert found == search_below(folder).scans
    same(read_scan(found["P1-TOF_3D_multi-slab"]))
    same(read_scan(found["P1-T1"]), VOXELS[:, :, :4])
    (note,) = read_scan(found["P1-T1"]).notes
    assert "'TOF 3D/multi-slab', number 5, 1.2.826.8.11 (5 slices)" in note and "localizer" in note
    # Results are made again where anything in the folder has changed.
    before = {name: file_state(path) for name, path in found.items()}
    assert before["P1-T1"]["scan"] != before["P1-TOF_3D_multi-slab"]["scan"]
    (folder / "B9").unlink()
    for name, path in found.items():
        assert file_state(path) != before[name]
    # Two patients have the same series.
    patient(tmp_path / "Q" / "P1")
    patient(tmp_path / "R" / "P1")
    assert {"Q-P1-T1", "R-P1-T1"} <= set(search_below(tmp_path).scans)


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ([("TOF", "1"), ("T1", "2")], ["TOF", "T1"]),
        ([("TOF", "1"), ("tof", "2")], ["TOF-1", "tof-2"]),
        ([("TOF", "1"), ("TOF", "1")], ["TOF-1", "TOF-1-2"]),
        ([("TOF", "1"), ("TOF", "2"), ("TOF-1", "3")], ["TOF-1-2", "TOF-2", "TOF-1"]),
        ([("", "7"), ("../..", "8")], ["7", "8"]),
        ([("", ""), ("\x1b[2J=1", "8")], ["2.826.30.100", "2J_1"]),
        ([("x" * 64, "1"), ("x" * 60, "2")], ["x" * 40 + "-1", "x" * 40 + "-2"]),
    ],
)
def test_names_of_series_never_meet(tmp_path, kinds, names):
    for n, (description, number) in enumerate(kinds):
        uid = f"1.2.826.30.{100 + n}"
        series(tmp_path / "P", uid, f"{n}-", description=description, number=number)
    found = search_below(tmp_path).scans
    assert sorted(found) == sorted(f"P-{name}" for name in names)
    assert len(set(found.values())) == len(kinds)
    for path in found.values():
        same(read_scan(path))


def test_a_cohort_s_case_with_several_series_is_refused_or_chosen(tmp_path):
    folder = patient(tmp_path / "images" / "P1")
    series(tmp_path / "images" / "P2", "1.2.826.9", description="TOF 3D/multi-slab", number="2")
    written(tmp_path / "images" / "P3.dcm", volume())
    for case in ("P1", "P2", "P3"):
        write_mrk_json(tmp_path / "landmarks" / f"{case}.mrk.json", {"tip": ORIGIN})
    splits = {"train": ["P1"], "val": ["P2"], "test": ["P3"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    cohort = read_cohort(Data(root=str(tmp_path)))
    assert cohort.cases["P1"].scan == folder
    refused(
        lambda: read_scan(folder),
        folder,
        "holds 2 DICOM series, need one: 'TOF 3D/multi-slab', number 5, 1.2.826.8.11 (5 slices), "
        "'T1', number 6, 1.2.826.8.12 (4 slices); choose with --config.data.series",
    )
    cohort = read_cohort(Data(root=str(tmp_path), series="tof 3d/multi-slab"))
    for case in cohort.cases.values():
        same(read_scan(case.scan))
    (note,) = read_scan(cohort.cases["P1"].scan).notes
    assert note.startswith("not part of this scan: series 'localizer'") and "'T1'" in note
    layout = find_layout
    (tmp_path / "images" / "P2").rename(tmp_path / "P2")
    for words in ("T1", "6", "1.2.826.8.12", "826.8.12", ".8.12"):
        path = layout(tmp_path, series=words).images["P1"]
        assert read_scan(path).voxels.shape == (7, 6, 4)
    for words in ("T2", "0", "localizer", "26.8.12"):
        refused(lambda: layout(tmp_path, series=words), folder, f"no DICOM volume is {words!r}")  # noqa: B023
    series(folder, "1.2.826.8.13", "C", description="t1", number="7")
    refused(lambda: layout(tmp_path, series="T1"), folder, "2 DICOM series are 'T1'", "number 7")
    (tmp_path / "P2").mkdir(exist_ok=True)
    folder.rename(tmp_path / "P1")
    refused(lambda: layout(tmp_path, series="T1"), "config.data.series: 'T1' chooses among DICOM")


def test_of_a_batch_the_series_that_the_config_names(tmp_path, capsys):
    folder = patient(tmp_path / "P1")
    series(tmp_path / "P2", "1.2.826.9", description="T2", number="6")
    written(tmp_path / "P3" / "IM.dcm", volume(description="T1"))
    for name in "XY":
        written(tmp_path / "P3" / f"{name}.dcm", volume(description=f"DWI {name}"))
    write_scan(tmp_path / "P4.nii.gz", VOXELS, AFFINE)
    every = search_below(tmp_path).scans
    assert scans_at(tmp_path) == every and len(every) == 7
    assert capsys.readouterr().err == ""
    # The names are those without a choice, and what is no DICOM has no series.
    assert scans_at(tmp_path, "t1") == {n: every[n] for n in ("P1-T1", "P3-T1", "P4")}
    captured = capsys.readouterr()
    assert captured.err == (
        "warning: left out, no DICOM volume that is 't1' (config.data.series; "
        f"--config.data.series= predicts all): {tmp_path}/P2: 'T2', number 6, 1.2.826.9 (5 "
        "slices)\n"
    )
    # Files of the scans' folders that are other series, but not those of the folder just named.
    assert "note: " in captured.out and "2 files look like images and are not read" in captured.out
    assert list(scans_at(tmp_path, "6")) == ["P1-T1", "P2", "P4"]
    assert list(scans_at(tmp_path, "26.8.11")) == ["P4"]
    assert list(scans_at(folder, ".8.11")) == ["P1-TOF_3D_multi-slab"]
    # Both series of a name: each is a scan of a batch.
    series(folder, "1.2.826.8.13", "C", description="t1", number="7")
    assert list(scans_at(folder, "T1")) == ["P1-T1-6", "P1-t1-7"]
    capsys.readouterr()


def test_a_batch_without_the_series_that_the_config_names(tmp_path):
    patient(tmp_path / "P1")
    written(tmp_path / "P2" / "SR.dcm", single(None, sop_class=f"{STORAGE}88.11"))
    refused(
        lambda: scans_at(tmp_path, "T2"),
        f"{tmp_path}: holds no DICOM volume that is 'T2' (config.data.series; "
        f"--config.data.series= predicts all): {tmp_path}/P1: 'TOF 3D/multi-slab', number 5, "
        "1.2.826.8.11 (5 slices); 'T1', number 6, 1.2.826.8.12 (4 slices); "
        f"{tmp_path}/P2: no DICOM volume: SR.dcm (a structured report)",
    )
    # A scan that is named itself is meant, whatever it is called.
    path = written(tmp_path / "a.dcm", volume(description="T1"))
    assert scans_at(path, "T2") == {"a": path}


def test_damage_is_of_any_series(tmp_path):
    folder = patient(tmp_path / "P1")
    path = written(folder / "A7.dcm", b"")
    (folder / "A7").unlink()
    assert list(scans_at(tmp_path, "T1")) == ["P1-T1"]
    for name in ("T1", "T2"):
        for scan in scans_at(tmp_path, name).values():
            refused(lambda: read_scan(scan), path, "truncated or damaged")  # noqa: B023


def test_one_slice_is_no_scan(tmp_path):
    folder = series(tmp_path / "P1", prefix="IM_000")
    path = (folder / "IM_0007").rename(folder / "IM_0007.dcm")
    problem = f"is one slice of a DICOM series, not a volume; give its folder instead: {folder}"
    for read in (scans_at, read_scan):
        refused(lambda: read(path), path, problem)  # noqa: B023
        refused(lambda: read(folder / "IM_0006"), folder / "IM_0006", problem)  # noqa: B023
    report = written(tmp_path / "SR.dcm", single(None, sop_class=f"{STORAGE}88.11"))
    refused(lambda: scans_at(report), report, "is no scan but a structured report")


# Tilted gantries


def tilted(degrees: float, direction: np.ndarray) -> np.ndarray:
    """Positions of slices that are shifted along a direction in their plane."""
    step = STEP_MM * (NORMAL + np.tan(np.radians(degrees)) * direction)
    return ORIGIN + np.arange(SLICES)[:, None] * step


@pytest.mark.parametrize("degrees", [5.0, 18.5, -30.0])
@pytest.mark.parametrize("direction", [Y, -X, 0.6 * X + 0.8 * Y])
@pytest.mark.parametrize("multi_frame", [False, True])
def test_tilted_slices_are_shifted_onto_right_angles(tmp_path, degrees, direction, multi_frame):
    """Against scipy's interpolation in the plane of each slice."""
    positions = tilted(degrees, direction)
    if multi_frame:
        path = written(tmp_path / "a", volume(positions=positions))
    else:
        path = series(tmp_path / "a", positions=positions)
    scan = read_scan(path)
    (note,) = scan.notes
    assert f"its slices are tilted by {abs(degrees):.1f} degrees (gantry)" in note
    axes = scan.ijk_to_lps[:3, :3]
    np.testing.assert_allclose(axes, AFFINE[:3, :3], atol=1e-6)
    np.testing.assert_allclose(axes[:, :2].T @ axes[:, 2], 0, atol=1e-9)
    sheared = np.column_stack([axes[:, :2], (positions[-1] - positions[0]) / (SLICES - 1)])
    ijk = np.indices(scan.voxels.shape).reshape(3, -1)
    world = axes @ ijk + scan.ijk_to_lps[:3, 3:]
    source = np.linalg.solve(sheared, world - positions[0][:, None])
    limits = np.array([COLUMNS, ROWS, SLICES])[:, None] - 1
    inside = ((source > -1e-6) & (source < limits + 1e-6)).all(0)
    source = np.clip(source, 0, limits)
    expected = np.where(inside, map_coordinates(VOXELS, source, order=1), VOXELS.min())
    np.testing.assert_allclose(scan.voxels.ravel(), expected, atol=1e-3)
    # Nothing is lost but the edges' outer half voxels.
    assert inside.sum() >= (COLUMNS - 1) * (ROWS - 1) * SLICES


def test_shifts_of_whole_voxels_change_nothing(tmp_path):
    """Nor does the rounding of positions."""
    step = STEP_MM * NORMAL - 2 * SPACING[0] * Y
    positions = np.round(ORIGIN + np.arange(SLICES)[:, None] * step, 4)
    path = series(tmp_path / "a", positions=positions)
    scan = read_scan(path)
    assert scan.voxels.shape == (COLUMNS, ROWS + 2 * (SLICES - 1), SLICES)
    for k in range(SLICES):
        begin = 2 * (SLICES - 1 - k)
        np.testing.assert_array_equal(scan.voxels[:, begin : begin + ROWS, k], VOXELS[:, :, k])
    assert (scan.voxels != VOXELS.min()).sum() <= VOXELS.size


def test_a_small_tilt_is_rounding(tmp_path):
    scan = read_scan(series(tmp_path / "a", positions=tilted(0.5, Y)))
    assert scan.notes == () and scan.voxels.shape == VOXELS.shape


def test_a_tilt_beyond_any_gantry_is_refused_with_its_angle(tmp_path):
    path = series(tmp_path / "a", positions=tilted(60, Y))
    refused(lambda: read_scan(path), path, "its slices are tilted by 60.0 degrees", "up to 45")


def test_tilted_slices_of_which_one_is_missing_are_refused(tmp_path):
    path = series(tmp_path / "a", positions=tilted(20, Y))
    (path / "IM7").unlink()
    refused(lambda: read_scan(path), path, "from slice 2 to 3", "a slice is missing")
