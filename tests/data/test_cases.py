"""Prepared images are read whole, by any number of threads, or refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import refused

from jaxmark.data.cases import PreparedCase, load_case, save_case


@pytest.fixture
def case(tmp_path):
    image = np.random.default_rng(0).normal(size=(9, 8, 7))
    made = PreparedCase(
        "c", tmp_path / "c", np.eye(4), np.zeros((2, 3)), np.ones(2, bool), np.zeros(2, bool)
    )
    save_case(made, image, tmp_path)
    return load_case(made.folder), image.astype(np.float16)


def test_many_threads_read_what_was_written(case):
    found, image = case
    with ThreadPoolExecutor(8) as pool:
        for read in pool.map(lambda _: found.image(), range(400)):
            assert read.dtype == np.float16
            np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("length", [0, 5, 100, 1000])
def test_a_cut_image_is_refused(case, length):
    found, _ = case
    path = found.folder / "image.npy"
    path.write_bytes(path.read_bytes()[:length])
    refused(found.image, path, "damaged prepared image")


def test_an_array_of_objects_is_refused(case):
    found, _ = case
    path = found.folder / "image.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    refused(found.image, path, "not an array that jaxmark writes")
