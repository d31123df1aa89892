"""Images in cubes: what is read is what was written, whatever part, and damage is found."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from conftest import random_rotation, refused

from jaxmark.core.geometry import compose_affine
from jaxmark.data import chunks
from jaxmark.data import frame as frames
from jaxmark.data.arrays import npy
from jaxmark.data.cases import PreparedCase, Volume, load_case, write_chunked_case
from jaxmark.data.chunks import SIDE, ChunkedImage, Chunks, slab_planes, write_chunks
from jaxmark.data.frame import Frame, load_frame, prepare_scan, save_frame
from jaxmark.data.multiscale import coarse, patch
from jaxmark.data.scans import Scan, read_scan, write_scan
from jaxmark.system.errors import InputError

SPACING = 0.8


def stored(folder, shape, factor, seed=0):
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float16)
    folder.mkdir(exist_ok=True)
    planes = slab_planes(factor)
    slabs = (image[x : x + planes] for x in range(0, shape[0], planes))
    return image, write_chunks(folder, shape, slabs, factor)


@pytest.mark.parametrize(
    ("shape", "factor"), [((70, 40, 36), 2), ((96, 33, 66), 3), ((32, 64, 32), 4), ((4, 6, 2), 1)]
)
def test_every_part_is_what_was_written(tmp_path, shape, factor):
    image, found = stored(tmp_path, shape, factor)
    np.testing.assert_array_equal(found.whole(), image)
    np.testing.assert_array_equal(found.coarse(factor), coarse(image, factor))
    rng = np.random.default_rng(1)
    for _ in range(30):
        # Across cubes, over each border, and outside.
        first = rng.integers(-20, np.array(shape) + 4)
        np.testing.assert_array_equal(found.patch(first, 17), patch(image, first, 17))
    found.check()
    # Any tool reads it.
    cubes = np.load(tmp_path / "chunks.npy")
    x, y, z = (min(n, SIDE) for n in shape)
    np.testing.assert_array_equal(cubes[0, 0, 0, :x, :y, :z], image[:x, :y, :z])


def test_another_factor_is_made_of_the_image(tmp_path):
    image, found = stored(tmp_path, (16, 8, 12), 2)
    np.testing.assert_array_equal(found.coarse(4), coarse(image, 4))


def test_a_volume_gives_the_same_parts_wherever_its_image_is(tmp_path, monkeypatch):
    image, found = stored(tmp_path, (40, 36, 44), 4)
    place = compose_affine(np.diag([0.4, 0.4, 0.5]), np.array([1.0, -2, 3]))
    on_disk = Volume("a", found.whole, place, found)
    in_memory = Volume("a", lambda: image, place)
    for first in ([3, 30, -4], [0, 0, 0]):
        np.testing.assert_array_equal(on_disk.patch(first, 12), in_memory.patch(first, 12))
    np.testing.assert_array_equal(on_disk.coarse(4), in_memory.coarse(4))
    for volume in (on_disk, in_memory):
        shown, its_place = volume.overview()
        np.testing.assert_array_equal(shown, image)
        np.testing.assert_array_equal(its_place, place)
    monkeypatch.setattr(chunks, "_LARGE_VOXELS", image.size - 1)
    small, its_place = on_disk.overview()
    np.testing.assert_array_equal(small, coarse(image, 4))
    # The middle of the first four voxels.
    np.testing.assert_allclose(its_place @ [0, 0, 0, 1], place @ [1.5, 1.5, 1.5, 1])
    np.testing.assert_allclose(its_place[:3, :3], 4 * place[:3, :3])


@pytest.mark.parametrize("length", [0, 60, 128, 100_000])
def test_a_cut_file_is_refused(tmp_path, length):
    _, found = stored(tmp_path, (70, 40, 36), 2)
    path = tmp_path / "chunks.npy"
    path.write_bytes(path.read_bytes()[:length])
    refused(lambda: found.patch([40, 10, 10], 24), path, "damaged prepared image")
    refused(found.whole, path, "damaged prepared image")
    refused(found.check, path, "its checksum is another one")


def test_another_image_s_file_is_refused(tmp_path):
    _, found = stored(tmp_path / "a", (70, 40, 36), 2)
    _, other = stored(tmp_path / "b", (70, 40, 36), 2, seed=1)
    _, larger = stored(tmp_path / "c", (70, 40, 68), 2)
    path = tmp_path / "a" / "chunks.npy"
    for image, check in ((other, found.check), (larger, found.whole)):
        path.write_bytes((image.folder / "chunks.npy").read_bytes())
        refused(check, path)
    (tmp_path / "b" / "coarse.npy").write_bytes(npy(np.zeros((35, 20, 18), np.float16)))
    refused(other.check, tmp_path / "b" / "coarse.npy", "its checksum is another one")
    (tmp_path / "b" / "coarse.npy").unlink()
    refused(lambda: other.coarse(2), tmp_path / "b" / "coarse.npy", "damaged prepared image")


def test_a_case_is_read_as_it_was_written(tmp_path):
    image, found = stored(tmp_path, (40, 36, 44), 4)
    points, here = np.arange(6.0).reshape(2, 3), np.array([True, True])
    case = PreparedCase("c", tmp_path, np.eye(4), points, here, ~here, chunks=found)
    write_chunked_case(case, tmp_path, tmp_path / "scan.nii")
    read = load_case(tmp_path)
    assert read.chunks == found and read.image_crc32 is None
    np.testing.assert_array_equal(read.image(), image)
    np.testing.assert_array_equal(read.volume.patch([1, 2, 3], 8), image[1:9, 2:10, 3:11])
    read.check_image()
    path = tmp_path / "chunks.npy"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    refused(read.check_image, path, "its checksum is another one")


def chunked_frame(shape, intensity="window", factor=2):
    grid = compose_affine(np.eye(3) * SPACING, -(np.array(shape) - 1) / 2 * SPACING)
    return Frame(
        register="none",
        metric="correlation",
        search_degrees=180.0,
        template=None,
        common_to_template=np.eye(4),
        grid_to_common=grid,
        shape=shape,
        intensity=intensity,
        intensity_range=(-200.0, 800.0) if intensity == "window" else (0.5, 99.5),
        chunks=Chunks(factor),
    )


AXES = {
    "parallel": np.eye(3) * SPACING,
    "flipped": np.diag([-1.0, -1.0, 1.0]) * SPACING,
    "permuted": np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]]),
    "finer": np.diag([0.3, 0.4, 0.5]),
    "coarser": np.diag([1.7, 0.8, 2.1]),
    "turned": random_rotation(np.random.default_rng(0)),
}


@pytest.mark.parametrize("intensity", ["window", "percentiles"])
@pytest.mark.parametrize("axes", AXES)
def test_parts_are_resampled_as_the_whole_is(tmp_path, monkeypatch, axes, intensity):
    # Several blocks, of which some lie over the border of the scan.
    monkeypatch.setattr(frames, "_BLOCK", 20)
    rng = np.random.default_rng(0)
    voxels = np.asfortranarray(rng.normal(100, 300, (44, 41, 38)).astype(np.int16))
    middle = (np.array(voxels.shape) - 1) / 2
    place = compose_affine(AXES[axes], -AXES[axes] @ middle + [0.2, 5.3, 0.1])
    write_scan(tmp_path / "scan.nii.gz", voxels, place)
    frame = chunked_frame((44, 40, 36), intensity)
    (tmp_path / "image").mkdir()
    found = prepare_scan(tmp_path / "scan.nii.gz", frame, tmp_path / "image")
    plain = dataclasses.replace(frame, chunks=None)
    expected = prepare_scan(tmp_path / "scan.nii.gz", plain)
    assert isinstance(found.image, ChunkedImage)
    # One step of half precision, by rounding of the sums.
    np.testing.assert_allclose(
        found.image.whole().astype(float), expected.image, rtol=1e-3, atol=1e-3
    )
    assert found.overlap == expected.overlap
    np.testing.assert_array_equal(found.ijk_to_lps, expected.ijk_to_lps)
    found.discard()
    assert not (tmp_path / "image").exists()


def test_no_copy_of_the_scan_in_floats_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "_BLOCK", 16)
    monkeypatch.setattr(chunks, "_LARGE_VOXELS", 0)
    shape = (640, 40, 40)
    voxels = np.asfortranarray(np.random.default_rng(0).integers(0, 500, shape).astype(np.int16))
    frame = chunked_frame(shape, factor=4)
    # Between voxels: everything is interpolated.
    scan = Scan(voxels, frame.grid_to_common @ compose_affine(np.eye(3), np.full(3, 0.3)))
    tracemalloc.start()
    try:
        frame.prepare(scan, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * 4 * voxels.size


def test_a_scaled_scan_is_read_alike_in_both_ways(tmp_path):
    path = tmp_path / "scan.nii"
    voxels = np.random.default_rng(0).integers(-1000, 1000, (9, 8, 7)).astype(np.int16)
    write_scan(path, voxels, np.eye(4))
    assert read_scan(path, as_stored=True).voxels.dtype == np.int16
    np.testing.assert_array_equal(read_scan(path, as_stored=True).voxels, read_scan(path).voxels)
    content = bytearray(path.read_bytes())
    # scl_slope and scl_inter.
    content[112:120] = np.array([0.3, -1024], "<f4").tobytes()
    path.write_bytes(content)
    scaled = read_scan(path, as_stored=True).voxels
    assert scaled.dtype == np.float32 and scaled.flags.f_contiguous
    expected = voxels.astype(np.float64) * np.float64(np.float32(0.3)) - 1024
    np.testing.assert_array_equal(scaled, expected.astype(np.float32))
    np.testing.assert_array_equal(scaled, read_scan(path).voxels)


def test_a_frame_keeps_how_its_images_are_stored(tmp_path):
    frame = chunked_frame((8, 8, 8), factor=4)
    save_frame(frame, ["a"], tmp_path)
    assert load_frame(tmp_path)[0].chunks == Chunks(4)
    save_frame(dataclasses.replace(frame, chunks=None), ["a"], tmp_path)
    assert load_frame(tmp_path)[0].chunks is None
    assert "chunks" not in (tmp_path / "frame.json").read_text()


def test_voxels_coarser_than_the_first_stage_s_are_doubted():
    frame = chunked_frame((8, 8, 8), factor=4)
    figures = np.nan, np.nan, 1.0
    assert frame.doubts(*figures, np.array([0.4, 0.4, 3.2])) == []
    (line,) = frame.doubts(*figures, np.array([0.4, 0.4, 5.0]))
    assert line == (
        "its voxels, up to 5 mm long, are coarser than the 3.2 mm of the first stage: the second "
        "sees nothing finer"
    )
    plain = dataclasses.replace(frame, chunks=None)
    assert plain.doubts(*figures, np.array([0.4, 0.4, 5.0])) == []


def test_a_scan_that_cannot_be_prepared_leaves_a_line(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 9, (8, 8, 8)).astype(np.int16)
    write_scan(tmp_path / "away.nii", voxels, compose_affine(np.eye(3), np.full(3, 900.0)))
    with pytest.raises(InputError, match="lies outside of the volume that the model looks at"):
        prepare_scan(tmp_path / "away.nii", chunked_frame((16, 16, 16)), tmp_path)
