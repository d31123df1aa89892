"""What readers make of formats beside ITK's own, and what they say of what they mend."""

import itertools
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import random_rotation, refused
from malformed_scans import (
    NAN,
    RAW,
    SHEAR,
    VOXELS,
    gz,
    metaimage,
    mgh,
    nifti,
    nifti_2,
    nrrd,
    with_value,
)
from test_scans import itk_read, write_series

from jaxmark.core.geometry import compose_affine
from jaxmark.data.scans import (
    LATER_EXTENSIONS,
    Scan,
    checked_scan,
    find_scans,
    passed_over,
    read_scan,
    search_below,
)

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACING = np.array([0.5, 0.75, 2.0])


def oblique(seed: int = 0, left_handed: bool = False) -> np.ndarray:
    """(4, 4) voxels -> RAS mm."""
    rng = np.random.default_rng(seed)
    axes = random_rotation(rng) * [1, 1, -1 if left_handed else 1]
    return compose_affine(axes * SPACING, rng.uniform(-100, 100, 3))


def quaternion(ras: np.ndarray) -> tuple[float, np.ndarray]:
    """pixdim[0] (-1 for left-handed axes) and b, c, d of a place, as the standard has them."""
    axes = ras[:3, :3] / np.linalg.norm(ras[:3, :3], axis=0)
    sign = np.sign(np.linalg.det(axes))
    axes = axes * [1, 1, sign]
    a = np.sqrt(1 + np.trace(axes)) / 2
    parts = [axes[2, 1] - axes[1, 2], axes[0, 2] - axes[2, 0], axes[1, 0] - axes[0, 1]]
    return sign, np.array(parts) / (4 * a)


def forms(sform: np.ndarray | None, qform: np.ndarray | None, codes=(1, 1)) -> dict[str, object]:
    """Fields of a header that states these places (RAS)."""
    fields: dict[str, object] = {"pixdim": (1, *SPACING, 0, 0, 0, 0), "sform_code": 0}
    if sform is not None:
        fields |= {"sform_code": codes[0], "srow": sform[:3].ravel()}
    if qform is not None:
        sign, parts = quaternion(qform)
        fields |= {"qform_code": codes[1], "quatern": parts, "qoffset": qform[:3, 3]}
        fields["pixdim"] = (sign, *SPACING, 0, 0, 0, 0)
    return fields


def read(folder: Path, name: str, content: bytes) -> Scan:
    (folder / name).write_bytes(content)
    return read_scan(folder / name)


# NIfTI


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_2_keeps_voxels_and_a_place_in_double_precision(
    tmp_path: Path, order: str, left_handed: bool
) -> None:
    ras = oblique(1, left_handed)
    for stated in (forms(ras, None), forms(None, ras), forms(ras, ras), forms(ras, ras, (4, 1))):
        scan = read(tmp_path, "a.nii.gz", gz(nifti_2(order=order, **stated)))
        np.testing.assert_array_equal(scan.voxels, VOXELS)
        np.testing.assert_allclose(scan.ijk_to_lps, TO_LPS @ ras, atol=1e-12)
        assert scan.notes == ()


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_nifti_2_types_and_scales(tmp_path: Path, dtype: str) -> None:
    array = VOXELS.astype(f"<{dtype}")
    scan = read(tmp_path, "a.nii", nifti_2(array, scl_slope=0.5, scl_inter=-3.0))
    np.testing.assert_array_equal(scan.voxels, VOXELS * 0.5 - 3)
    assert scan.voxels.dtype == np.float32 and scan.voxels.strides[0] == 4


def test_nifti_2_and_pairs_are_what_nibabel_wrote(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    ras = oblique(2)
    for kind, name in [
        (nibabel.Nifti2Image, "a.nii.gz"),
        (nibabel.Nifti2Image, "a.nii"),
        (nibabel.Nifti1Pair, "a.hdr"),
        (nibabel.Nifti2Pair, "a.hdr"),
        (nibabel.MGHImage, "a.mgz"),
    ]:
        nibabel.save(kind(VOXELS.astype(np.float32), ras), tmp_path / name)
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.voxels, VOXELS)
        np.testing.assert_allclose(scan.ijk_to_lps, TO_LPS @ ras, atol=1e-4)


def test_places_are_those_of_itk_whatever_the_forms(tmp_path: Path) -> None:
    """Beside each other in every mixture of codes, to the last bit."""
    path = tmp_path / "a.nii"
    for seed, codes in enumerate(itertools.product((0, 1, 2, 4), (0, 1, 2))):
        ras, other = oblique(seed, bool(seed % 2)), oblique(seed + 50)
        for unit in (0, 2):
            stated = forms(ras, other, codes) | {"xyzt_units": unit}
            path.write_bytes(nifti(**stated))
            np.testing.assert_array_equal(read_scan(path).ijk_to_lps, itk_read(path).ijk_to_lps)
    # A half turn: the quaternion's first part is nothing but rounding.
    half = {"quatern": (0.6, 0.8, 0), "qform_code": 1, "sform_code": 0}
    path.write_bytes(nifti(**half))
    np.testing.assert_array_equal(read_scan(path).ijk_to_lps, itk_read(path).ijk_to_lps)


def test_forms_that_disagree_are_said_with_millimetres(tmp_path: Path) -> None:
    ras = oblique(3)
    moved = ras.copy()
    moved[:3, 3] += [10, -5, 3]
    for make in (nifti, nifti_2):
        scan = read(tmp_path, "a.nii", make(**forms(moved, ras, (2, 1))))
        np.testing.assert_allclose(scan.ijk_to_lps, TO_LPS @ ras, atol=1e-4)
        assert scan.notes == (
            "its sform (code 2) and qform (code 1) are 11.6 mm apart at the centre, up to 11.6 mm "
            "at the corners: read by the qform, as ITK and 3D Slicer do",
        )
        (note,) = read(tmp_path, "a.nii", make(**forms(moved, ras, (1, 1)))).notes
        assert note.endswith("read by the sform, as ITK and 3D Slicer do")
    # Within a voxel it is rounding.
    moved[:3, 3] = ras[:3, 3] + 0.2
    assert read(tmp_path, "a.nii", nifti(**forms(moved, ras, (2, 1)))).notes == ()
    # In micrometres.
    micro = forms(oblique(4), oblique(5)) | {"xyzt_units": 3}
    micro["pixdim"] = (1, 500, 750, 2000, 0, 0, 0, 0)
    micro["srow"] = (np.array(micro["srow"]).reshape(3, 4) * 1000).ravel()
    micro["qoffset"] = np.array(micro["qoffset"]) * 1000
    (note,) = read(tmp_path, "a.nii", nifti(**micro)).notes
    (expected,) = read(tmp_path, "a.nii", nifti(**forms(oblique(4), oblique(5)))).notes
    assert note == expected


def test_a_turn_about_the_centre_shows_at_the_corners(tmp_path: Path) -> None:
    turned = (-1, 0, 0, 5, 0, -1, 0, 4, 0, 0, 1, 0)
    scan = read(tmp_path, "a.nii", nifti(qform_code=1, sform_code=2, srow=turned))
    assert "are 0.0 mm apart at the centre, up to 6.4 mm at the corners" in scan.notes[0]


def test_a_sheared_sform_is_said_where_the_qform_is_taken(tmp_path: Path) -> None:
    for make, code in itertools.product((nifti, nifti_2), (1, 2)):
        stated = {"qform_code": 1, "sform_code": code, "srow": SHEAR, "quatern": (0, 0, 1)}
        scan = read(tmp_path, "a.nii", make(**stated))
        np.testing.assert_allclose(scan.ijk_to_lps, np.eye(4), atol=1e-6)
        assert f"its sform (code {code}), which is sheared, and qform (code 1)" in scan.notes[0]
        assert "read by the qform" in scan.notes[0]


def test_a_nifti_without_a_place_is_said(tmp_path: Path) -> None:
    for make in (nifti, nifti_2):
        scan = read(tmp_path, "a.nii", make(sform_code=0))
        np.testing.assert_array_equal(scan.ijk_to_lps, np.eye(4))
        assert scan.notes[0].startswith("states no place (neither sform nor qform): taken as LPS")


def test_a_nifti_that_is_not_compressed_though_its_name_says_so(tmp_path: Path) -> None:
    for make, order in itertools.product((nifti, nifti_2), "<>"):
        scan = read(tmp_path, "a.nii.gz", make(order=order))
        np.testing.assert_array_equal(scan.voxels, VOXELS)
        assert scan.notes == ("is not compressed, though its name ends in .gz",)
    assert read(tmp_path, "a.nii.gz", gz(nifti())).notes == ()


def test_a_pair_needs_both_files_and_the_header_is_the_scan(tmp_path: Path) -> None:
    (tmp_path / "a.hdr").write_bytes(nifti(magic=b"ni1\0", vox_offset=0)[:348])
    assert find_scans(tmp_path) == {}
    (tmp_path / "a.img").write_bytes(RAW)
    assert find_scans(tmp_path) == {"a": tmp_path / "a.hdr"}
    assert search_below(tmp_path).scans == {"a": tmp_path / "a.hdr"}
    np.testing.assert_array_equal(read_scan(tmp_path / "a.hdr").voxels, VOXELS)
    (tmp_path / "a.img").write_bytes(RAW[:-1])
    refused(lambda: read_scan(tmp_path / "a.hdr"), "a.hdr: truncated or damaged")
    (tmp_path / "a.img").unlink()
    os.mkfifo(tmp_path / "a.img")
    refused(lambda: read_scan(tmp_path / "a.hdr"), "its voxels, a.img, are missing")


# FreeSurfer's


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4"])
def test_mgh_places_its_centre_and_its_axes(tmp_path: Path, dtype: str) -> None:
    array = VOXELS.astype(f"<{dtype}")
    ras = oblique(6)
    axes = (ras[:3, :3] / SPACING).T
    centre = ras[:3, :3] @ (np.array(VOXELS.shape) / 2) + ras[:3, 3]
    content = mgh(array, spacing=SPACING, axes=axes.ravel(), centre=centre)
    # Scan parameters and tags follow the voxels.
    for name, data in (("a.mgh", content + bytes(20)), ("a.mgz", gz(content + bytes(20)))):
        scan = read(tmp_path, name, data)
        np.testing.assert_array_equal(scan.voxels, VOXELS)
        assert scan.voxels.dtype == np.float32 and scan.voxels.strides[0] == 4
        np.testing.assert_allclose(scan.ijk_to_lps, TO_LPS @ ras, atol=1e-4)


# Voxels that are NaN


def outside(dtype: str = "<f4") -> np.ndarray:
    array = VOXELS.astype(dtype) - 7
    array[4:] = NAN
    return array


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_nan_outside_of_the_field_of_view_is_filled(tmp_path: Path, dtype: str) -> None:
    array = outside(dtype)
    apart = tmp_path / "a.raw"
    apart.write_bytes(array.tobytes("F"))
    kind = {"<f4": ("float", "MET_FLOAT"), "<f8": ("double", "MET_DOUBLE")}[dtype]
    for name, content in [
        ("a.nii.gz", gz(nifti(array))),
        ("2.nii", nifti_2(array)),
        ("scaled.nii", nifti(array, scl_slope=1.0, scl_inter=0.0)),
        ("a.mha", metaimage(array, ElementType=kind[1])),
        ("a.nrrd", nrrd(array.tobytes("F"), type=kind[0])),
        ("a.nhdr", nrrd(b"", type=kind[0], data_file="a.raw")),
        *([("a.mgz", gz(mgh(array)))] if dtype == "<f4" else []),
    ]:
        scan = read(tmp_path, name, content)
        expected = np.where(np.isnan(array), -7, array)
        np.testing.assert_array_equal(scan.voxels, expected, err_msg=name)
        assert scan.voxels.strides[0] == 4
        assert scan.notes == (
            "33.3 % of its voxels are NaN: filled with its smallest value, -7",
        ), name


def test_a_single_nan_is_said_and_an_array_of_the_caller_stays(tmp_path: Path) -> None:
    large = np.zeros((20, 20, 20), np.float32)
    large[3] = 5
    large[1, 2, 3] = NAN
    scan = checked_scan(large, np.eye(4), "array")
    assert scan.notes == ("under 0.1 % of its voxels are NaN: filled with its smallest value, 0",)
    assert np.isnan(large[1, 2, 3]) and scan.voxels[1, 2, 3] == 0
    assert read(tmp_path, "a.nii", nifti(with_value(NAN))).notes[0].startswith("0.8 % of its")


def test_up_to_nine_tenths_may_be_nan(tmp_path: Path) -> None:
    array = VOXELS.astype("<f4")
    array[array < 108] = NAN
    assert read(tmp_path, "a.nii", nifti(array)).notes[0].startswith("90.0 % of")
    array[array < 109] = NAN
    (tmp_path / "a.nii").write_bytes(nifti(array))
    refused(lambda: read_scan(tmp_path / "a.nii"), "a.nii: 109 voxels are NaN or infinite")


# Axes that are nearly at right angles


def slanted(path: Path, axes: np.ndarray) -> bytes:
    """A file of these axes (columns, LPS), written with all their digits."""
    numbers = [[f"{v:.9g}" for v in column] for column in axes.T]
    if path.suffix == ".mha":
        return metaimage(TransformMatrix=" ".join(itertools.chain(*numbers)))
    if path.suffix == ".nrrd":
        return nrrd(space_directions=" ".join(f"({','.join(column)})" for column in numbers))
    ras = np.c_[np.diag([-1, -1, 1]) @ axes, np.zeros(3)]
    return (nifti_2 if path.stem == "2" else nifti)(srow=ras.ravel())


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nii", "2.nii"])
def test_directions_of_three_decimals_are_made_right_angles(tmp_path: Path, name: str) -> None:
    said = 0
    for seed in range(6):
        exact = random_rotation(np.random.default_rng(seed))
        scan = read(tmp_path, name, slanted(tmp_path / name, np.round(exact, 3)))
        axes = scan.ijk_to_lps[:3, :3] / scan.spacing_mm
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=2e-4)
        np.testing.assert_allclose(scan.ijk_to_lps[:3, :3], exact, atol=2e-3)
        said += len(scan.notes)
        for note in scan.notes:
            assert note.startswith("its axes are 0.0") and "degrees off right angles" in note
            assert note.endswith("made right, which moves its corners by up to 0.00 mm")
    assert said >= 3


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nii", "2.nii"])
def test_a_shear_that_is_no_rounding_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for shear, right in ((0.004, True), (0.006, False), (0.02, False)):
        path.write_bytes(slanted(path, np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]])))
        if right:
            assert len(read_scan(path).notes) == 1
        else:
            refused(partial(read_scan, path), path, "not at right angles (a sheared")


def test_straightening_keeps_the_middle_where_it_is(tmp_path: Path) -> None:
    axes = np.array([[1, 0.004, 0], [0, 1, 0], [0, 0, 1]])
    scan = read(tmp_path, "a.mha", slanted(tmp_path / "a.mha", axes))
    middle = (np.array(VOXELS.shape) - 1) / 2
    np.testing.assert_allclose(
        scan.ijk_to_lps[:3, :3] @ middle + scan.ijk_to_lps[:3, 3], axes @ middle, atol=1e-12
    )
    assert scan.notes[0].startswith("its axes are 0.23 deg")


# What is passed over


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_files_that_look_like_images_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "notes.txt", "splits.json", ".hidden.png", "a.raw")
    found = find_scans(tmp_path)
    assert passed_over(tmp_path, found.values()) == ""
    touch(tmp_path, "b.hdr", "c.png", "d.dcm", "E.V", "f.minc", "g.img", "h.nii.bz2")
    assert find_scans(tmp_path) == found
    line = passed_over(tmp_path, found.values())
    assert line.startswith(
        "7 files look like images and are not read: E.V, b.hdr, c.png, d.dcm, f.minc and 2 more "
        "(jaxmark reads .nii, "
    )
    assert line.endswith(" and DICOM series)")


def test_parts_of_scans_are_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.hdr", "a.img", "b.mhd", "b.raw", "c.nhdr", "c.img", "D.hdr", "D.img.gz")
    write_series(tmp_path / "ct")
    assert set(found := search_below(tmp_path).scans) == {"D", "a", "b", "c", "ct"}
    assert passed_over(tmp_path, found.values(), below=True) == ""
    touch(tmp_path, "ct/scout.png", "below/x/mr.v")
    line = passed_over(tmp_path, found.values(), below=True)
    assert line.startswith(
        "2 files look like images and are not read: ct/scout.png, below/x/mr.v ("
    )
    assert passed_over(tmp_path, found.values()) == ""
    touch(tmp_path, "e.png")
    assert passed_over(tmp_path, found.values()).startswith("1 file looks like an image and is not")


@pytest.mark.parametrize("extension", LATER_EXTENSIONS)
def test_a_second_image_in_a_format_that_was_not_read_before_changes_nothing(
    tmp_path: Path, extension: str
) -> None:
    touch(tmp_path, "one/a.nii.gz", "two/b.mha")
    before = search_below(tmp_path).scans
    touch(tmp_path, f"one/a{extension}", "one/a.img")
    assert search_below(tmp_path).scans == before
    assert find_scans(tmp_path / "one") == {"a": before["a"]}
    line = passed_over(tmp_path / "one", [before["a"]])
    assert f"a{extension}" in line
    # Two of them are a doubt.
    touch(tmp_path, "three/c.mgz", "three/c.nhdr")
    refused(lambda: find_scans(tmp_path / "three"), "'c' has a second image")
