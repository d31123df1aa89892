"""Pictures as scans: the size of a pixel, DICOM, slices in NIfTI, and what a folder holds."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused
from malformed_scans import nifti
from pictures import CAPTURE, GREY, png, tiff, xray

from experiments.dicom_files import packed, single
from jaxmark.core.grids import Plane
from jaxmark.data.pictures import (
    find_pictures,
    picture_in_memory,
    pictures_in,
    read_picture,
    search_pictures_below,
)
from jaxmark.data.scans import find_scans, read_scan
from jaxmark.results.batch import scans_at
from jaxmark.system.fingerprints import file_state

# (H, W), 12 bits.
FILM = (np.arange(6 * 8).reshape(6, 8) * 80 + 11).astype(np.uint16)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_picture_is_a_scan_of_one_voxel_along_z(tmp_path):
    scan = read_picture(written(tmp_path / "a.png", png(GREY)), "mm", 0.25)
    assert scan.voxels.shape == (7, 5, 1) and scan.voxels.dtype == np.float32
    assert scan.voxels.strides[0] == 4 and scan.planar
    np.testing.assert_array_equal(scan.voxels[..., 0].T, GREY)
    np.testing.assert_array_equal(scan.ijk_to_lps, np.diag([0.25, 0.25, 1, 1]))
    assert scan.pixel_mm == (0.25, 0.25)


def test_in_pixels_the_world_is_that_of_pixels_and_the_size_is_kept(tmp_path):
    path = written(tmp_path / "a.tif", tiff(GREY))
    for size, kept in ((0.0, None), (0.25, (0.25, 0.25))):
        scan = read_picture(path, "px", size)
        np.testing.assert_array_equal(scan.ijk_to_lps, np.eye(4))
        assert scan.pixel_mm == kept


def test_a_picture_without_a_pixel_size_has_no_millimetres(tmp_path):
    path = written(tmp_path / "a.png", png(GREY))
    refused(partial(read_picture, path), path, "config.data.pixel_size_mm", "unit=px")


def test_a_flat_picture_shows_nothing(tmp_path):
    path = written(tmp_path / "a.png", png(np.full((5, 5), 3, np.uint8)))
    refused(partial(read_picture, path, "px"), path, "all voxels are 3")


# DICOM


@pytest.mark.parametrize("name", ["film.dcm", "IM0001"])
def test_an_xray_is_read_with_its_pixel_size(tmp_path, name):
    scan = read_picture(written(tmp_path / name, xray(FILM, spacing=(0.3, 0.2))))
    np.testing.assert_array_equal(scan.voxels[..., 0].T, FILM)
    # Between columns, between rows.
    assert scan.pixel_mm == (0.2, 0.3)
    np.testing.assert_array_equal(np.diag(scan.ijk_to_lps), [0.2, 0.3, 1, 1])
    assert not scan.notes


@pytest.mark.parametrize("compressed", [False, True])
def test_an_xray_with_white_as_0_is_inverted(tmp_path, compressed):
    film = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)
    content = xray(film, photometric="MONOCHROME1", spacing=(1, 1))
    content = packed(content, film[None]) if compressed else content
    scan = read_picture(written(tmp_path / "a.dcm", content))
    # By a constant: what is brightest is not said by the pixels.
    total = scan.voxels[..., 0].T + film
    assert np.ptp(total) == 0
    assert "MONOCHROME1" in scan.notes[0]


def test_a_size_at_the_detector_is_said_and_yields_to_what_is_stated(tmp_path):
    path = written(tmp_path / "a.dcm", xray(FILM, at_detector=(0.15, 0.15)))
    scan = read_picture(path)
    assert scan.pixel_mm == (0.15, 0.15) and "at the detector alone" in scan.notes[0]
    scan = read_picture(path, "mm", 0.13)
    assert scan.pixel_mm == (0.13, 0.13) and "not the 0.15 mm at the detector" in scan.notes[0]
    both = written(tmp_path / "b.dcm", xray(FILM, spacing=(0.15, 0.15), at_detector=(0.15, 0.15)))
    assert "at the detector" in read_picture(both).notes[0]
    mended = written(tmp_path / "c.dcm", xray(FILM, spacing=(0.13, 0.13), at_detector=(0.15, 0.15)))
    assert read_picture(mended).pixel_mm == (0.13, 0.13) and not read_picture(mended).notes


def test_a_size_that_contradicts_the_file_is_refused(tmp_path):
    path = written(tmp_path / "a.dcm", xray(FILM, spacing=(0.2, 0.2)))
    assert read_picture(path, "mm", 0.201).pixel_mm == (0.2, 0.2)
    refused(partial(read_picture, path, "mm", 0.1), path, "0.2 x 0.2 mm", "0.1 mm is stated")


def test_a_capture_without_a_size_needs_one(tmp_path):
    path = written(tmp_path / "a.dcm", xray(FILM, sop_class=CAPTURE))
    assert read_picture(path, "px").pixel_mm is None
    refused(partial(read_picture, path), path, "states no pixel size")


def test_damaged_dicom_is_refused(tmp_path):
    content = xray(FILM, spacing=(1, 1))
    for end in range(140, len(content), 11):
        path = written(tmp_path / "a.dcm", content[:end])
        refused(partial(read_picture, path), path)
    path = written(
        tmp_path / "b.dcm", single(None, modality="SR", sop_class="1.2.840.10008.5.1.4.1.1.88.11")
    )
    refused(partial(read_picture, path), path, "is no picture but a structured report")


def test_frames_of_one_file_are_pictures(tmp_path):
    frames = np.stack([FILM + n for n in range(12)])
    path = written(tmp_path / "run.dcm", xray(frames, spacing=(0.3, 0.2)))
    found = find_pictures(tmp_path)
    assert list(found) == [f"run-{n:03}" for n in range(1, 13)]
    for n, frame in enumerate(found.values()):
        np.testing.assert_array_equal(read_picture(frame).voxels[..., 0].T, frames[n])
        assert file_state(frame)["files"] == file_state(path)["files"]
    assert pictures_in(path) == found
    refused(partial(read_picture, path), path, "has 12 frames")
    refused(partial(read_picture, path / "frame=13"), path, "has 12 frames, and no frame=13")


def cine(folder: Path, count: int = 4, **settings) -> Path:
    """Files whose names are in another order than their instance numbers."""
    for n in range(count):
        content = xray(FILM + n, spacing=(1, 1), instance=n + 1, **settings)
        written(folder / f"IM{9 - n}", content)
    return folder


def test_a_folder_is_a_cine_in_the_order_of_instances(tmp_path):
    cine(tmp_path / "patient")
    found = find_pictures(tmp_path)
    assert list(found) == [f"patient-{n:03}" for n in range(1, 5)]
    for n, path in enumerate(found.values()):
        np.testing.assert_array_equal(read_picture(path).voxels[..., 0].T, FILM + n)
    cine(tmp_path / "one", 1)
    assert "one" in find_pictures(tmp_path)


def test_a_cine_has_one_size(tmp_path):
    folder = cine(tmp_path / "patient")
    bad = written(folder / "IM0", xray(FILM[:5], spacing=(1, 1), instance=9))
    refused(
        partial(find_pictures, tmp_path),
        bad,
        "has 8 x 5 pixels",
        "(IM9) 8 x 6: a cine has one size",
    )
    # A batch goes on with others.
    written(tmp_path / "x.png", png(GREY))
    found = search_pictures_below(tmp_path)
    assert list(found.scans) == ["x"] and "a cine has one size" in found.left_out[folder]


def test_one_of_several_series_is_chosen(tmp_path):
    folder = cine(tmp_path / "patient", uid="1.2.826.30")
    for n in range(2):
        written(folder / f"B{n}", xray(FILM, uid="1.2.826.31", instance=n + 1))
    refused(partial(find_pictures, tmp_path), folder, "holds 2 DICOM series, need one")
    assert len(find_pictures(tmp_path, "1.2.826.31")) == 2
    refused(partial(find_pictures, tmp_path, "T2"), folder, "0 of them are 'T2'")


# Slices in NIfTI


def test_a_slice_of_nifti_is_a_picture(tmp_path):
    pixels = FILM.T.astype(np.int16)[..., None]
    spaced = {"pixdim": (1, 0.5, 0.7, 9, 0, 0, 0, 0)}
    flat = nifti(pixels, dim=(2, 8, 6, 0, 0, 0, 0, 0), **spaced)
    for name, content in (("a.nii", nifti(pixels, **spaced)), ("b.nii", flat)):
        scan = read_picture(written(tmp_path / name, content))
        np.testing.assert_array_equal(scan.voxels, pixels)
        np.testing.assert_allclose(scan.pixel_mm, (0.5, 0.7))
        np.testing.assert_allclose(np.diag(scan.ijk_to_lps), (0.5, 0.7, 1, 1))
    path = written(tmp_path / "c.nii", nifti(pixels, **spaced)[:-4])
    refused(partial(read_picture, path), path, "truncated")


def test_a_volume_is_no_picture_and_a_picture_is_no_volume(tmp_path):
    volume = written(tmp_path / "volume.nii", nifti())
    refused(partial(read_picture, volume), volume, "has 6 x 5 x 4 voxels", "crop")
    slice_ = written(tmp_path / "slice.nii", nifti(FILM.T.astype(np.int16)[..., None]))
    refused(partial(read_scan, slice_), slice_, "Z = 1 reads it")
    picture = written(tmp_path / "a.png", png(GREY))
    refused(
        partial(read_scan, picture), picture, "pictures are read where config.data.crop has Z = 1"
    )
    other = written(tmp_path / "a.mha", b"")
    refused(partial(read_picture, other), other, "not a picture format")


# Folders


def test_a_preview_beside_scans_is_none_of_them(tmp_path):
    written(tmp_path / "a.nii", nifti())
    written(tmp_path / "preview.png", png(GREY))
    assert list(find_scans(tmp_path)) == ["a"]


def test_pictures_are_found_by_their_names(tmp_path):
    for name in ("b.PNG", "a.tif", "c.x.jpeg", ".hidden.png", "notes.txt", "d.mha", "e.nii.gz"):
        written(tmp_path / name, png(GREY))
    written(tmp_path / "film.dcm", xray(FILM))
    assert list(find_pictures(tmp_path)) == ["a", "b", "c.x", "e", "film"]
    written(tmp_path / "A.bmp", png(GREY))
    refused(partial(find_pictures, tmp_path), "has a second image")


def test_pictures_below_a_folder_are_called_by_their_paths(tmp_path, capfd):
    for name in ("one/a.png", "two/a.png", "two/b.png", "c.tif", "two/d.mha"):
        written(tmp_path / name, png(GREY))
    cine(tmp_path / "two" / "run", 2)
    found = scans_at(tmp_path, planar=True)
    assert list(found) == ["b", "c", "one-a", "run-001", "run-002", "two-a"]
    assert "1 file looks like an image and is not read: two/d.mha" in capfd.readouterr().out
    assert scans_at(tmp_path / "c.tif", planar=True) == {"c": tmp_path / "c.tif"}


# In memory


def test_a_picture_in_memory_is_that_of_its_file(tmp_path):
    from_file = read_picture(written(tmp_path / "a.png", png(GREY)), "mm", 0.5)
    for pixels in (GREY.T, np.repeat(GREY.T[..., None], 3, -1)):
        scan = picture_in_memory(pixels, "mm", (0.5, 0.5), "array")
        np.testing.assert_allclose(scan.voxels, from_file.voxels, rtol=1e-6)
        np.testing.assert_array_equal(scan.ijk_to_lps, from_file.ijk_to_lps)
    refused(partial(picture_in_memory, GREY, "mm", None, "array"), "array", "no pixel size")
    refused(partial(picture_in_memory, np.zeros(9), "px", None, "array"), "array", "1 axes")
    for wrong in (GREY.astype(complex), GREY.astype(str)):
        refused(partial(picture_in_memory, wrong, "px", None, "array"), "array", "real number")


def test_a_plane_goes_to_pixels_and_back():
    points = np.array([[3.0, 4.0, 0.0], [0.2, 0.9, 0.0]])
    plane = Plane("mm", (0.2, 0.3))
    np.testing.assert_allclose(plane.pixels(points), [[15, 40 / 3], [1, 3]])
    np.testing.assert_allclose(plane.points(plane.pixels(points)), points)
    np.testing.assert_allclose(Plane("px", (0.2, 0.3)).pixels(points), points[:, :2])


def test_itk_inverts_what_is_said_to_be_inverted(tmp_path):
    # If another version does not, `MONOCHROME1` is not right any more.
    path = written(tmp_path / "a.dcm", xray(FILM, photometric="MONOCHROME1"))
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0].astype(int)
    assert stored[0, 0] > stored[-1, -1] and FILM[0, 0] < FILM[-1, -1]
