import gzip
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused

from jaxmark.data.scans import (
    EXTENSIONS,
    Scan,
    find_scans,
    from_image,
    read_scan,
    search_below,
    to_image,
    write_scan,
)

# ITK writes no MGH.
OF_ITK = [extension for extension in EXTENSIONS if extension not in (".mgz", ".mgh")]
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


@pytest.mark.parametrize("extension", OF_ITK)
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


@pytest.mark.parametrize("extension", OF_ITK)
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
    stored = read_scan(tmp_path / "ct", as_stored=True)
    assert stored.voxels.dtype == np.int16
    np.testing.assert_array_equal(stored.voxels, voxels())
    np.testing.assert_allclose(scan.ijk_to_lps, AFFINE, atol=1e-6)


# Equal to what ITK reads, to the last bit


def itk_read(path: Path) -> Scan:
    return from_image(sitk.ReadImage(str(path)))


def same_as_itk(path: Path) -> None:
    scan, expected = read_scan(path), itk_read(path)
    assert scan.voxels.dtype == np.float32 and scan.voxels.strides == expected.voxels.strides
    assert scan.voxels.tobytes("F") == expected.voxels.tobytes("F")
    np.testing.assert_array_equal(scan.ijk_to_lps, expected.ijk_to_lps)


def every_bit(dtype: str) -> np.ndarray:
    """Voxels of a type in its whole range; real ones without NaN and infinities."""
    rng = np.random.default_rng(1)
    if dtype[0] == "f":
        numbers = rng.standard_normal(SHAPE) * 10.0 ** rng.integers(-40, 30, SHAPE)
        return numbers.astype(dtype)
    return np.frombuffer(rng.bytes(np.prod(SHAPE) * int(dtype[1])), dtype).reshape(SHAPE)


TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
SCALES = [(0, 0), (1, 0), (1, -1024), (0.1, 0), (-2.5, 1e3), (np.nan, 0), (1e-7, 0), (1.0000001, 0)]


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", TYPES)
def test_nifti_voxels(tmp_path: Path, dtype: str, order: str, extension: str) -> None:
    """Files from ITK, with another scale written into them, and in the other byte order."""
    sitk_image = to_image(every_bit(dtype), AFFINE)
    content = itk_write(tmp_path / "a.nii", sitk_image).read_bytes()
    header, data = bytearray(content[:348]), content[352:]
    for slope, intercept in SCALES:
        struct.pack_into("<2f", header, 112, slope, intercept)
        whole = bytes(header) + bytes(4) + data
        if order == ">":
            whole = swapped_nifti(whole, int(dtype[1]))
        path = tmp_path / f"b{extension}"
        path.write_bytes(gzip.compress(whole) if extension == ".nii.gz" else whole)
        same_as_itk(path)


def swapped_nifti(content: bytes, itemsize: int) -> bytes:
    """A NIfTI-1 file in the other byte order: the sizes of its header's fields, in order."""
    sizes = [4] + [1] * 36 + [2] * 8 + [4] * 3 + [2] * 4 + [4] * 11 + [2, 1, 1] + [4] * 6
    sizes += [1] * 104 + [2] * 2 + [4] * 18 + [1] * 20
    parts, at = [], 0
    for size in sizes:
        parts.append(content[at : at + size][::-1])
        at += size
    assert at == 348
    data = np.frombuffer(content[352:], f"V{itemsize}")
    swapped = data.view(f"u{itemsize}").byteswap().tobytes()
    return b"".join(parts) + content[348:352] + swapped


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("extension", [".mha", ".mhd"])
@pytest.mark.parametrize("dtype", TYPES)
def test_metaimage_voxels(tmp_path: Path, dtype: str, extension: str, compress: bool) -> None:
    path = itk_write(tmp_path / f"a{extension}", to_image(every_bit(dtype), AFFINE), compress)
    same_as_itk(path)
    content = path.read_bytes()
    if not compress:
        path.write_bytes(content.replace(b"ByteOrderMSB = False", b"ByteOrderMSB = True"))
        # Real numbers with their bytes the other way round may be NaN.
        if dtype[0] != "f":
            same_as_itk(path)


@pytest.mark.parametrize("extension", [".mha", ".nii"])
def test_places(tmp_path: Path, extension: str) -> None:
    """Every way round of the axes."""
    rng = np.random.default_rng(3)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[list(order)] * signs * rng.uniform(0.3, 3, 3)
            affine[:3, 3] = rng.uniform(-300, 300, 3)
            path = tmp_path / f"a{extension}"
            for rotation in (np.eye(3), ROTATION):
                affine[:3, :3] = rotation @ affine[:3, :3]
                same_as_itk(itk_write(path, to_image(voxels(), affine)))


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
    for name, other in (("A.mha", "a.nii"), ("e\u0301.mha", "\u00e9.nii")):
        # On a file system that tells them apart.
        (tmp_path / name).touch()
        (tmp_path / other).touch()
        refused(lambda: find_scans(tmp_path), tmp_path, "has a second image")
        (tmp_path / name).unlink()


# Finding in folders of folders


def test_scans_below_a_folder(tmp_path: Path) -> None:
    """As hospitals export them: patient, study, series, files without an extension."""
    for patient, study, series in [("A", "1", "SE1"), ("A", "1", "SE2"), ("B", "1", "SE1")]:
        folder = tmp_path / patient / study / series
        folder.parent.mkdir(parents=True, exist_ok=True)
        for file in list(write_series(folder).iterdir()):
            file.rename(file.with_suffix(""))
    (tmp_path / "A" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "A" / "1" / "SE2" / "made").mkdir()
    (tmp_path / "A" / "1" / "SE2" / "made" / "SE1.nii").touch()
    (tmp_path / "B" / "report.txt").touch()
    (tmp_path / "B" / "c.nii.gz").touch()
    (tmp_path / "c.mha").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "d.nii").touch()
    found = search_below(tmp_path).scans
    assert found == {
        "A-1-SE1": tmp_path / "A" / "1" / "SE1",
        "A-1-SE2-made-SE1": tmp_path / "A" / "1" / "SE2" / "made" / "SE1.nii",
        "B-1-SE1": tmp_path / "B" / "1" / "SE1",
        "B-c": tmp_path / "B" / "c.nii.gz",
        "SE2": tmp_path / "A" / "1" / "SE2",
        "c": tmp_path / "c.mha",
    }
    assert list(found) == sorted(found)
    np.testing.assert_array_equal(read_scan(found["B-1-SE1"]).voxels, voxels())
    assert find_scans(tmp_path) == {"c": tmp_path / "c.mha"}


def test_a_folder_that_is_a_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "ct")
    assert search_below(folder).scans == {"ct": folder}
    (folder / "ct.nii").touch()
    refused(lambda: search_below(folder), "'ct'", "second image")
    (folder / "ct.nii").unlink()
    monkeypatch.chdir(folder)
    assert search_below(Path()).scans == {"ct": Path()}


def test_several_series_below_are_scans_and_refused_when_read_as_one(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", "1.2.826.1", "a")
    write_series(tmp_path / "ct", "1.2.826.2", "b")
    found = search_below(tmp_path).scans
    assert list(found) == ["ct-1.2.826.1", "ct-1.2.826.2"]
    for path in found.values():
        np.testing.assert_array_equal(read_scan(path).voxels, voxels())
    refused(lambda: read_scan(folder), folder, "holds 2 DICOM series")


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "b.nii").touch()
    (root / "below").mkdir(parents=True)
    (root / "below" / "a.nii").touch()
    (root / "below" / "back").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "out").symlink_to(outside)
    (root / "ct").symlink_to(write_series(tmp_path / "ct"))
    (root / "lost").symlink_to(tmp_path / "nowhere")
    (root / "lost.nii").symlink_to(tmp_path / "nowhere.nii")
    (root / "linked.nii").symlink_to(outside / "b.nii")
    assert search_below(root).scans == {
        "a": root / "below" / "a.nii",
        "linked": root / "linked.nii",
        "lost": root / "lost.nii",
    }


def test_finding_below_refuses(tmp_path: Path) -> None:
    refused(lambda: search_below(tmp_path / "scans"), tmp_path / "scans", "no such folder")
    below = tmp_path / "b\x1b[2J"
    below.mkdir()
    (below / "a.nii").touch()
    assert search_below(tmp_path).scans == {"a": below / "a.nii"}
    (tmp_path / "a.nii").touch()
    # Refused where it would become a name: see `check_case`.
    assert set(search_below(tmp_path).scans) == {"a", "b\x1b[2J-a"}
    (below / "a.nii").rename(below / "A.nii")
    assert set(search_below(tmp_path).scans) == {"a", "b\x1b[2J-A"}
    (below / "A.nii").rename(below / "a.nii")
    (below / "a.nii").rename(tmp_path / "a.mha")
    refused(lambda: search_below(tmp_path), "a.nii", "'a'", "second image", "a.mha")
    (tmp_path / "a.mha").unlink()
    # Joined names may meet others.
    for name in ("x/y.nii", "z/y.nii", "x-y.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    refused(lambda: search_below(tmp_path), "'x-y'", "second image")
