"""Scans that are malformed or hostile: one line says what is wrong, and nothing else is said."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused
from malformed_scans import (
    FILES,
    GREEDY,
    NAN,
    PACKED,
    PARTS,
    RAW,
    SHEAR,
    VOXELS,
    gz,
    metaimage,
    mgh,
    nifti,
    nifti_2,
    nrrd,
)
from test_scans import OF_ITK, image, itk_write, replace, voxels, write_series

from jaxmark.data.scans import EXTENSIONS, find_scans, read_scan, search_below, write_scan


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What is wrong is said once: libraries say nothing of their own."""
    yield
    assert capfd.readouterr().err == ""


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Ends what waits for ever, as on a pipe."""

    def stop(*_: object) -> None:
        raise TimeoutError("waits for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", FILES | PARTS)
def test_malformed_files(tmp_path: Path, what: str) -> None:
    name, content, problem = (FILES | PARTS)[what]
    (tmp_path / name).write_bytes(content())
    refused(lambda: read_scan(tmp_path / name), tmp_path / name, problem)


def test_well_formed_files(tmp_path: Path) -> None:
    """Else the ones above could be refused for another reason than theirs."""
    (tmp_path / "a.raw").write_bytes(RAW)
    (tmp_path / "skipped.raw").write_bytes(bytes(10) + RAW)
    (tmp_path / "a.zraw").write_bytes(PACKED)
    (tmp_path / "a.gz").write_bytes(gz(RAW))
    (tmp_path / "pair.img").write_bytes(RAW)
    (tmp_path / "PAIR2.IMG").write_bytes(bytes(16) + RAW)
    (tmp_path / "packed.img.gz").write_bytes(gz(RAW))
    pair = {"magic": b"ni1\0", "vox_offset": 0}
    text = " ".join(map(str, VOXELS.ravel(order="F"))).encode()
    for name, content in [
        ("a.nii", nifti()),
        ("a.nii.gz", gz(nifti())),
        ("extended.nii", nifti(pad=52)),
        ("filled.nii.gz", gz(nifti()) + bytes(512)),
        ("parts.nii.gz", gz(nifti()[:100]) + gz(nifti()[100:])),
        ("one.nii", nifti(dim=(7, 6, 5, 4, 1, 1, 1, 1))),
        ("nan.nii", nifti(scl_slope=NAN, scl_inter=NAN)),
        ("uncompressed.nii.gz", nifti()),
        ("2.nii", nifti_2()),
        ("2.nii.gz", gz(nifti_2())),
        ("2-uncompressed.nii.gz", nifti_2()),
        ("2-big.nii", nifti_2(order=">")),
        ("pair.hdr", nifti(**pair)[:348]),
        ("pair.hdr", nifti_2(magic=b"ni2\0\r\n\x1a\n", vox_offset=0)[:540]),
        ("PAIR2.HDR", nifti(magic=b"ni1\0", vox_offset=16)[:352]),
        ("packed.hdr", nifti(**pair)[:348]),
        ("a.mgh", mgh()),
        ("a.mgz", gz(mgh())),
        ("uncompressed.mgz", mgh()),
        ("a.mha", metaimage()),
        ("packed.mha", metaimage(data=PACKED, CompressedData="True")),
        ("a.mhd", metaimage(data=b"", last="a.raw")),
        ("skipped.mhd", metaimage(data=b"", last="skipped.raw", HeaderSize=10)),
        ("end.mhd", metaimage(data=b"", last="skipped.raw", HeaderSize=-1)),
        ("packed.mhd", metaimage(data=b"", last="a.zraw", CompressedData="True")),
        ("a.nrrd", nrrd()),
        ("packed.nrrd", nrrd(gz(RAW), encoding="gzip")),
        ("text.nrrd", nrrd(text, encoding="text")),
        ("apart.nrrd", nrrd(b"", data_file="./a.raw")),
        ("apart.nrrd", nrrd(b"", data_file="a.gz", encoding="gzip")),
        ("apart.nhdr", nrrd(b"", data_file="a.raw")),
        ("apart.nhdr", nrrd(b"", datafile="a.gz", encoding="gzip")),
        ("whole.nhdr", nrrd()),
        ("crlf.mha", metaimage(data=b"").replace(b"\n", b"\r\n") + RAW),
        ("crlf.nrrd", nrrd(b"").replace(b"\n", b"\r\n") + RAW),
    ]:
        (tmp_path / name).write_bytes(content)
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.voxels, VOXELS, err_msg=name)
        np.testing.assert_array_equal(scan.ijk_to_lps, np.eye(4), err_msg=name)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for its memory")
def test_memory_is_not_asked_for(tmp_path: Path) -> None:
    """In a process that may have 128 MiB more than it has; at most 2 ** 31 voxels are claimed."""
    paths = [tmp_path / str(i) / name for i, (name, _, _) in enumerate(GREEDY.values())]
    for path, (_, content, _) in zip(paths, GREEDY.values(), strict=True):
        path.parent.mkdir()
        path.write_bytes(content())
    code = """
import resource, sys
from pathlib import Path
from jaxmark.system.errors import InputError
from jaxmark.data.scans import read_scan
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (128 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    try:
        read_scan(Path(path))
        print("was read")
    except InputError as error:
        print(error)
"""
    run = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    for path, line, (what, (_, _, problem)) in zip(
        paths, done.stdout.splitlines(), GREEDY.items(), strict=True
    ):
        assert line.startswith(f"{path}: ") and problem in line, (what, line)


def test_slope_0_means_none_whatever_the_intercept(tmp_path: Path) -> None:
    # So the standard; ITK adds the intercept.
    (tmp_path / "a.nii").write_bytes(nifti(scl_slope=0, scl_inter=5))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nii").voxels, VOXELS)


@pytest.mark.parametrize("code", [1, 2, 4])
def test_qform_and_sform_that_contradict_each_other(tmp_path: Path, code: int) -> None:
    swapped = (0, -1, 0, 7, -1, 0, 0, 8, 0, 0, 1, 9)
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(qform_code=1, sform_code=code, srow=swapped, qoffset=(1, 2, 3)))
    # RAS in the file, LPS here.
    of_sform = [[0, 1, 0, -7], [1, 0, 0, -8], [0, 0, 1, 9], [0, 0, 0, 1]]
    of_qform = [[-1, 0, 0, -1], [0, -1, 0, -2], [0, 0, 1, 3], [0, 0, 0, 1]]
    expected = of_sform if code == 1 else of_qform
    np.testing.assert_array_equal(read_scan(path).ijk_to_lps, expected)


def test_a_sheared_sform_beside_a_qform(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(qform_code=1, srow=SHEAR, qoffset=(1, 2, 3)))
    np.testing.assert_array_equal(read_scan(path).ijk_to_lps[:, 3], [-1, -2, 3, 1])


def test_micrometres(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    pixdim = (1, 50, 50, 50, 0, 0, 0, 0)
    path.write_bytes(
        nifti(xyzt_units=3, pixdim=pixdim, srow=(-50, 0, 0, 500, 0, -50, 0, 0, 0, 0, 50, 0))
    )
    np.testing.assert_allclose(read_scan(path).spacing_mm, 0.05)
    np.testing.assert_allclose(read_scan(path).ijk_to_lps[0, 3], -0.5)


# What is no file


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder to work in, as somebody whom permissions concern: root may read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_what_may_not_be_read(unprivileged: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.mha", "a.nrrd"):
        (unprivileged / name).write_bytes(nifti())
        (unprivileged / name).chmod(0)
        path = unprivileged / name
        refused(partial(read_scan, path), path, "cannot be read: Permission denied")
        path.unlink()
    (unprivileged / "below").mkdir()
    (unprivileged / "below" / "IM0001").write_bytes(b"x")
    (unprivileged / "below" / "IM0001").chmod(0)
    problem = "cannot be read: Permission denied"
    refused(lambda: find_scans(unprivileged), unprivileged / "below" / "IM0001", problem)
    (unprivileged / "below").chmod(0)
    for find in (find_scans, search_below):
        refused(partial(find, unprivileged), unprivileged / "below", problem)


def test_a_long_path(tmp_path: Path) -> None:
    path = tmp_path.joinpath(*["x" * 200] * 7, "a.nrrd")
    path.parent.mkdir(parents=True)
    path.write_bytes(nrrd(type="quark"))
    refused(lambda: read_scan(path), path, "its path has more than 512 bytes")


def test_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.symlink_to(tmp_path / "nowhere")
    refused(lambda: read_scan(path), path, "no such file")
    path.unlink()
    path.symlink_to(path)
    refused(lambda: read_scan(path), path, "no such file")
    path.unlink()
    path.mkdir()
    refused(lambda: read_scan(path), path, "holds no DICOM files")
    path.rmdir()
    os.mkfifo(path)
    refused(lambda: read_scan(path), path, "is not a file")
    (tmp_path / "b.mhd").write_bytes(metaimage(data=b"", last="a.nii.gz"))
    refused(lambda: read_scan(tmp_path / "b.mhd"), "b.mhd", "a.nii.gz is missing")


# Formats, as ITK writes them and spoilt


def test_a_missing_file_and_an_unknown_format(tmp_path: Path) -> None:
    refused(lambda: read_scan(tmp_path / "a.nii"), tmp_path / "a.nii", "no such file")
    (tmp_path / "a.png").write_text("x")
    refused(lambda: read_scan(tmp_path / "a.png"), "a.png", "not an image format", ".nii.gz")


# Where ITK writes the voxels of a header, plain and compressed.
APART = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz"), ".hdr": (".img", ".img")}


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.95, -1])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("extension", OF_ITK)
def test_truncated_files(
    tmp_path: Path, extension: str, compress: bool, kept: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = itk_write(tmp_path / f"a{extension}", image(), compress)
    part = path
    if extension in APART:
        part = path.with_suffix(APART[extension][compress])
    content = part.read_bytes()
    part.write_bytes(content[:-1] if kept == -1 else content[: int(len(content) * kept)])
    refused(lambda: read_scan(path), path, "truncated")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extension", [".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"])
def test_damaged_compressed_files(
    tmp_path: Path, extension: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = itk_write(tmp_path / f"a{extension}", image(), True)
    part = path.with_suffix(APART[extension][True]) if extension in APART else path
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
        (
            "complex.nii",
            sitk.Cast(volume, sitk.sitkComplexFloat32),
            "type 32 (colour, complex or unknown)",
        ),
        ("thin.mha", volume[:, :, :3], "(7, 6, 3) voxels; each axis needs at least 4"),
        ("constant.nii", volume * 0 + 7, "all voxels are 7"),
    ]:
        path = itk_write(tmp_path / name, wrong)
        refused(partial(read_scan, path), path, problem)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("extension", OF_ITK)
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
    refused(lambda: read_scan(path), path, "spacing")


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
    refused(lambda: read_scan(path), path, "pacing")


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
    refused(lambda: read_scan(folder), folder / "7.dcm", "has (4, 6) voxels", "(7, 6)")


def spoil(path: Path, tag: str, value: str | None) -> None:
    """Changes the text of a DICOM element, in its length; None takes the element away."""
    group, element = (int(part, 16) for part in tag.split("|"))
    key = struct.pack("<2H", group, element)
    content = path.read_bytes()
    at = content.index(key)
    if value is None:
        # An element that nobody asks for.
        content = content[:at] + struct.pack("<2H", group, element + 1) + content[at + 4 :]
    else:
        (length,) = struct.unpack_from("<I", content, at + 4)
        content = (
            content[: at + 8]
            + os.fsencode(value).ljust(length)[:length]
            + content[at + 8 + length :]
        )
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("tag", "value", "problem"),
    [
        ("0028|0030", None, "states no pixel spacing"),
        ("0020|0032", None, "states no image position"),
        ("0020|0037", None, "states no image orientation"),
        ("7fe0|0010", None, "damaged, or not a DICOM image"),
        ("0028|0030", "0\\0", "spacing of (0, 0)"),
        ("0028|0030", "-1\\1", "spacing of (-1, 1)"),
        ("0028|0030", "1e9\\1", "spacing of (1e+09, 1)"),
        ("0028|0030", "\udcff\\1", "spacing of (nan, 1)"),
        ("0028|0030", ".7", "1 numbers as pixel spacing"),
        ("0028|0030", ".9\\.5", "another spacing or direction"),
        ("0020|0037", "1\\0\\0\\0\\1\\0", "another spacing or direction"),
    ],
)
def test_a_spoilt_slice(tmp_path: Path, tag: str, value: str | None, problem: str) -> None:
    folder = write_series(tmp_path / "ct")
    spoil(folder / "7.dcm", tag, value)
    refused(lambda: read_scan(folder), folder / "7.dcm", problem)


def test_a_slice_without_its_samples_a_voxel(tmp_path: Path) -> None:
    # GDCM takes one.
    folder = write_series(tmp_path / "ct")
    spoil(folder / "7.dcm", "0028|0002", None)
    np.testing.assert_array_equal(read_scan(folder).voxels, voxels())


@pytest.mark.parametrize(
    ("rows", "problem"),
    [(7, "less pixel data"), (100, "less pixel data"), (20000, "less pixel data")],
)
def test_slices_that_claim_more_than_they_hold(tmp_path: Path, rows: int, problem: str) -> None:
    folder = write_series(tmp_path / "ct")
    for path in folder.iterdir():
        for element in (0x10, 0x11):
            key = struct.pack("<2HI", 0x28, element, 2)
            content = path.read_bytes()
            at = content.index(key) + len(key)
            path.write_bytes(content[:at] + struct.pack("<H", rows) + content[at + 2 :])
    refused(lambda: read_scan(folder), folder, problem)


def test_compressed_slices_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    for path in folder.iterdir():
        small = sitk.ReadImage(str(path))
        # JPEG 2000 needs some voxels.
        part = sitk.Expand(small, [8, 8, 1], sitk.sitkNearestNeighbor)
        for key in small.GetMetaDataKeys():
            if not key.startswith("0028"):
                part.SetMetaData(key, small.GetMetaData(key))
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.SetFileName(str(path))
        writer.Execute(part)
    assert read_scan(folder).voxels.shape == (56, 48, 5)
    for path in folder.iterdir():
        for element in (0x10, 0x11):
            key = struct.pack("<2H2sH", 0x28, element, b"US", 2)
            content = path.read_bytes()
            at = content.index(key) + len(key)
            path.write_bytes(content[:at] + struct.pack("<H", 20000) + content[at + 2 :])
    refused(lambda: read_scan(folder), folder, "truncated or damaged")


def test_a_doubled_slice(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    shutil.copy(folder / "7.dcm", folder / "4.dcm")
    refused(lambda: read_scan(folder), folder, "missing or doubled")


def test_a_pipe_among_slices(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    os.mkfifo(folder / "x")
    np.testing.assert_array_equal(read_scan(folder).voxels, voxels())


def test_slices_of_different_scale_keep_their_fractions(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    slope = struct.pack("<2HI2s", 0x28, 0x1053, 2, b"1 ")
    for name in ("8.dcm", "7.dcm", "6.dcm", "5.dcm"):
        replace(folder / name, slope, slope[:-2] + b".5")
    np.testing.assert_array_equal(read_scan(folder).voxels, voxels() * [1, 0.5, 0.5, 0.5, 0.5])
