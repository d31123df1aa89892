import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused

from jaxmark.data.scans import (
    EXTENSIONS,
    find_scans,
    from_image,
    read_scan,
    to_image,
    write_scan,
)

SHAPE = (7, 6, 5)
# An oblique frame: turned about two axes, with a different spacing along each.
_C, _S = np.cos(0.3), np.sin(0.3)
ROTATION = np.array([[_C, -_S, 0], [_S, _C, 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, _C, -_S], [0, _S, _C]]
)
SPACING_MM = np.array([0.5, 0.7, 1.5])
AFFINE = np.eye(4)
AFFINE[:3, :3] = ROTATION * SPACING_MM
AFFINE[:3, 3] = [-12.5, 30.25, 7.0]


def voxels(dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)


def itk_write(path: Path, image: sitk.Image, compress: bool = False) -> Path:
    sitk.WriteImage(image, str(path), compress)
    return path


def image(dtype: type = np.float32) -> sitk.Image:
    return sitk.Cast(to_image(voxels(), AFFINE), sitk.GetImageFromArray(voxels(dtype)).GetPixelID())


def replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def write_series(folder: Path, uid: str = "1.2.826.1", prefix: str = "") -> Path:
    """A CT series, one file a slice, in file names that are not in the order of the slices."""
    folder.mkdir(exist_ok=True)
    volume = image(np.int16)
    direction = np.reshape(volume.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(SHAPE[2]):
        part = volume[:, :, k]
        position = volume.TransformIndexToPhysicalPoint((0, 0, k))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.9.{k}",
            "0020|000d": "1.2.826.5",
            "0020|000e": uid,
            "0020|0013": str(k),
            "0020|0032": "\\".join(f"{v:.10g}" for v in position),
            "0020|0037": "\\".join(f"{v:.10g}" for v in direction.T[:2].ravel()),
        }
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{prefix}{9 - k}.dcm"))
        writer.Execute(part)
    return folder


# Reading and writing


def test_index_and_millimetres_agree_with_simpleitk() -> None:
    made = to_image(voxels(), AFFINE)
    assert made.GetSize() == SHAPE
    for index in ((0, 0, 0), (6, 0, 0), (1, 5, 3)):
        expected = AFFINE[:3, :3] @ index + AFFINE[:3, 3]
        np.testing.assert_allclose(made.TransformIndexToPhysicalPoint(index), expected, atol=1e-12)
        assert made[index] == voxels()[index]
    back = from_image(made)
    np.testing.assert_array_equal(back.voxels, voxels())
    np.testing.assert_allclose(back.ijk_to_lps, AFFINE, atol=1e-14)
    np.testing.assert_allclose(back.spacing_mm, SPACING_MM)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_format_is_read(tmp_path: Path, extension: str, compress: bool, dtype: type) -> None:
    scan = read_scan(itk_write(tmp_path / f"a{extension}", image(dtype), compress))
    assert scan.voxels.dtype == np.float32 and scan.ijk_to_lps.dtype == np.float64
    assert scan.voxels.strides[0] == 4
    np.testing.assert_array_equal(scan.voxels, voxels())
    np.testing.assert_allclose(scan.ijk_to_lps, AFFINE, atol=1e-5)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_written_scans_keep_type_and_place(tmp_path: Path, extension: str, dtype: type) -> None:
    path = tmp_path / "new" / f"a{extension}"
    write_scan(path, voxels(dtype), AFFINE)
    assert list(path.parent.iterdir()) == [path]
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).dtype == dtype
    np.testing.assert_array_equal(read_scan(path).voxels, voxels())
    exact = 1e-14 if extension in (".mha", ".nrrd") else 1e-5
    np.testing.assert_allclose(read_scan(path).ijk_to_lps, AFFINE, atol=exact)


def test_write_refuses_what_it_would_change(tmp_path: Path) -> None:
    sheared = AFFINE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for name, array, affine, problem in [
        ("a.mhd", voxels(), AFFINE, "need"),
        ("a.png", voxels(), AFFINE, "need"),
        ("a.NII", voxels(), AFFINE, "need"),
        ("a.nii", voxels(np.float64), AFFINE, "float64"),
        ("a.nii", voxels(), sheared, "right angles"),
    ]:
        with pytest.raises(ValueError, match=problem):
            write_scan(tmp_path / name, array, affine)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extensions_in_capitals(tmp_path: Path, extension: str) -> None:
    path = itk_write(tmp_path / f"a{extension}", image())
    path = path.rename(tmp_path / f"A{extension.upper()}")
    np.testing.assert_array_equal(read_scan(path).voxels, voxels())


def test_left_handed_axes_are_kept(tmp_path: Path) -> None:
    mirrored = AFFINE @ np.diag([-1.0, 1, 1, 1])
    for extension in (".nii", ".mha", ".nrrd"):
        write_scan(tmp_path / f"a{extension}", voxels(), mirrored)
        np.testing.assert_allclose(
            read_scan(tmp_path / f"a{extension}").ijk_to_lps, mirrored, atol=1e-5
        )


@pytest.mark.parametrize("extension", [".nii", ".nrrd"])
def test_a_fourth_dimension_of_one_is_dropped(tmp_path: Path, extension: str) -> None:
    scan = read_scan(itk_write(tmp_path / f"a{extension}", sitk.JoinSeries([image()])))
    np.testing.assert_array_equal(scan.voxels, voxels())
    np.testing.assert_allclose(scan.ijk_to_lps, AFFINE, atol=1e-5)


def test_a_dicom_series_is_read_in_space_order(tmp_path: Path) -> None:
    scan = read_scan(write_series(tmp_path / "ct"))
    assert scan.voxels.dtype == np.float32
    np.testing.assert_array_equal(scan.voxels, voxels())
    np.testing.assert_allclose(scan.ijk_to_lps, AFFINE, atol=1e-6)


# Errors


def test_a_missing_file_and_an_unknown_format(tmp_path: Path) -> None:
    refused(lambda: read_scan(tmp_path / "a.nii"), tmp_path / "a.nii", "no such file")
    (tmp_path / "a.png").write_text("x")
    refused(lambda: read_scan(tmp_path / "a.png"), "a.png", "not an image format", ".nii.gz")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.95, -1])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_truncated_files(
    tmp_path: Path, extension: str, compress: bool, kept: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = itk_write(tmp_path / f"a{extension}", image(), compress)
    part = path
    if extension == ".mhd":
        part = path.with_suffix(".zraw" if compress else ".raw")
    content = part.read_bytes()
    part.write_bytes(content[:-1] if kept == -1 else content[: int(len(content) * kept)])
    refused(lambda: read_scan(path), path, "truncated")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extension", [".nii.gz", ".mha", ".mhd", ".nrrd"])
def test_damaged_compressed_files(
    tmp_path: Path, extension: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = itk_write(tmp_path / f"a{extension}", image(), True)
    part = path.with_suffix(".zraw") if extension == ".mhd" else path
    content = bytearray(part.read_bytes())
    content[-len(content) // 8] ^= 0xFF
    part.write_bytes(content)
    refused(lambda: read_scan(path), path, "damaged")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_garbage(tmp_path: Path, extension: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"a{extension}"
    path.write_bytes(b"not an image " * 100)
    refused(lambda: read_scan(path), path, "cannot be read")
    assert capfd.readouterr().err == ""


def test_a_header_without_its_data_file(tmp_path: Path) -> None:
    path = itk_write(tmp_path / "a.mhd", image())
    (tmp_path / "a.raw").unlink()
    refused(lambda: read_scan(path), path, "data file a.raw is missing")


def test_images_that_are_no_volume_of_numbers(tmp_path: Path) -> None:
    volume = image()
    for name, wrong, problem in [
        ("flat.nii", volume[:, :, 0], "2 dimensions, (7, 6)"),
        ("time.nii.gz", sitk.JoinSeries([volume, volume]), "4 dimensions, (7, 6, 5, 2)"),
        ("vector.nrrd", sitk.Compose(volume, volume, volume), "3 numbers a voxel"),
        ("colour.mha", sitk.Compose(*[sitk.Cast(volume, sitk.sitkUInt8)] * 3), "3 numbers a voxel"),
        ("complex.nii", sitk.Cast(volume, sitk.sitkComplexFloat32), "2 numbers a voxel"),
        ("thin.mha", volume[:, :, :3], "(7, 6, 3) voxels; each axis needs at least 4"),
        ("constant.nii", volume * 0 + 7, "all voxels are 7"),
    ]:
        path = itk_write(tmp_path / name, wrong)
        refused(partial(read_scan, path), path, problem)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("pixel", [sitk.sitkFloat32, sitk.sitkFloat64])
def test_voxels_that_are_not_finite(
    tmp_path: Path, extension: str, pixel: int, value: float
) -> None:
    wrong = sitk.Cast(image(), pixel)
    wrong[3, 4, 2] = wrong[5, 0, 1] = value
    path = itk_write(tmp_path / f"a{extension}", wrong)
    refused(lambda: read_scan(path), f"{path}: 2 voxels are NaN or infinite", "(3, 4, 2)")


def test_float64_voxels_beyond_float32(tmp_path: Path) -> None:
    path = itk_write(tmp_path / "a.mha", image(np.float64) * 1e300)
    refused(lambda: read_scan(path), path, "NaN or infinite")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_impossible_spacing_in_nifti(tmp_path: Path, value: float) -> None:
    path = itk_write(tmp_path / "a.nii", image())
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 84, value)
    path.write_bytes(content)
    refused(lambda: read_scan(path), path, "spacing that is zero or not finite")


@pytest.mark.parametrize(
    ("extension", "old", "new"),
    [
        (".mha", b"ElementSpacing = 0.5 ", b"ElementSpacing = 0 "),
        (".mha", b"ElementSpacing = 0.5 ", b"ElementSpacing = nan "),
        (".nrrd", b"(0,0,1.5)", b"(0,0,0)"),
        (".nrrd", b"(0,0,1.5)", b"(nan,nan,nan)"),
    ],
)
def test_impossible_spacing_in_text(tmp_path: Path, extension: str, old: bytes, new: bytes) -> None:
    path = tmp_path / f"a{extension}"
    write_scan(path, voxels(), np.diag([0.5, 0.7, 1.5, 1.0]))
    replace(path, old, new)
    refused(lambda: read_scan(path), path, "spacing that is zero or not finite")


@pytest.mark.parametrize(
    ("extension", "old", "new"),
    [
        (".mha", b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0 1 0 0 0 0 1"),
        (".nrrd", b"(0,0,1.5)", b"(0,1.5,0)"),
    ],
)
def test_singular_axes(tmp_path: Path, extension: str, old: bytes, new: bytes) -> None:
    path = tmp_path / f"a{extension}"
    write_scan(path, voxels(), np.diag([0.5, 0.7, 1.5, 1.0]))
    replace(path, old, new)
    refused(lambda: read_scan(path), path, "singular direction matrix")


def test_a_sheared_nifti(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = itk_write(tmp_path / "a.nii", image())
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 0, 1)
    struct.pack_into("<4f", content, 280, 1.0, 0.5, 0.0, 0.0)
    path.write_bytes(content)
    refused(lambda: read_scan(path), path, "not at right angles")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_sheared_axes_in_text(tmp_path: Path, extension: str) -> None:
    sheared = image()
    sheared.SetDirection((1, 0.3, 0, 0, 1, 0, 0, 0, 1))
    path = itk_write(tmp_path / f"a{extension}", sheared)
    refused(lambda: read_scan(path), path, "not at right angles")


def test_a_data_file_with_a_name_beyond_ascii(tmp_path: Path) -> None:
    path = itk_write(tmp_path / "ünï.mhd", image())
    np.testing.assert_array_equal(read_scan(path).voxels, voxels())


# DICOM errors


def test_a_folder_without_dicom(tmp_path: Path) -> None:
    refused(lambda: read_scan(tmp_path), tmp_path, "holds no DICOM files")


def test_several_series(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", "1.2.826.1", "a")
    write_series(tmp_path / "ct", "1.2.826.2", "b")
    (tmp_path / "ct" / "b9.dcm").unlink()
    problem = "holds 2 DICOM series, need one: 1.2.826.1 (5 slices), 1.2.826.2 (4 slices)"
    refused(lambda: read_scan(tmp_path / "ct"), tmp_path / "ct", problem)


def test_a_missing_slice(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    (folder / "7.dcm").unlink()
    refused(lambda: read_scan(folder), folder, "from slice 2 to 3", "a slice is missing")


@pytest.mark.parametrize("name", ["9.dcm", "7.dcm"])
def test_a_truncated_slice(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = write_series(tmp_path / "ct") / name
    file.write_bytes(file.read_bytes()[:-20])
    refused(lambda: read_scan(tmp_path / "ct"), file, "truncated")
    assert capfd.readouterr().err == ""


def test_slices_in_one_place(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    for file in folder.iterdir():
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        part = reader.Execute()
        part.SetMetaData("0020|0032", "0\\0\\0")
        part.SetOrigin((0, 0, 0))
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(file))
        writer.Execute(part)
    refused(lambda: read_scan(folder), folder, "doubled")


def test_too_few_slices(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    for name in ("9.dcm", "8.dcm"):
        (folder / name).unlink()
    refused(lambda: read_scan(folder), folder, "(7, 6, 3) voxels")


def test_slices_of_two_sizes(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    file = sitk.ImageFileReader()
    file.SetFileName(str(folder / "7.dcm"))
    part = file.Execute()
    smaller = part[:4]
    for tag in part.GetMetaDataKeys():
        smaller.SetMetaData(tag, part.GetMetaData(tag))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(folder / "7.dcm"))
    writer.Execute(smaller)
    refused(lambda: read_scan(folder), folder, "cannot be read as one volume")


# Finding


def test_scans_are_found_by_name(tmp_path: Path) -> None:
    for name in [
        "b.nii.gz",
        "a.v2.mha",
        "c.mhd",
        "c.raw",
        "d.nrrd",
        "notes.txt",
        ".e.nii",
        "F.NII",
    ]:
        (tmp_path / name).write_bytes(b"")
    write_series(tmp_path / "ct")
    (tmp_path / "empty").mkdir()
    found = find_scans(tmp_path)
    assert {name: path.name for name, path in found.items()} == {
        "F": "F.NII",
        "a.v2": "a.v2.mha",
        "b": "b.nii.gz",
        "c": "c.mhd",
        "ct": "ct",
        "d": "d.nrrd",
    }
    assert list(found) == sorted(found)


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    for file in list(write_series(tmp_path / "ct").iterdir()):
        file.rename(file.with_suffix(""))
    assert list(find_scans(tmp_path)) == ["ct"]
    np.testing.assert_array_equal(read_scan(tmp_path / "ct").voxels, voxels())


def test_a_link_that_leads_nowhere_is_found_and_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to(tmp_path / "elsewhere.nii")
    refused(lambda: read_scan(find_scans(tmp_path)["a"]), tmp_path / "a.nii", "no such file")


def test_finding_refuses(tmp_path: Path) -> None:
    refused(lambda: find_scans(tmp_path / "images"), tmp_path / "images", "no such folder")
    (tmp_path / "a.nii").touch()
    (tmp_path / "a.mha").touch()
    refused(lambda: find_scans(tmp_path), "a.nii", "'a'", "second image", "a.mha")
    (tmp_path / "a.mha").unlink()
    (tmp_path / "b\x1b[2J.nii").touch()
    refused(lambda: find_scans(tmp_path), r"b\x1b[2J.nii", "control characters")
