"""Prepared images are read whole, by any number of threads, or refused."""

import ast
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

import jaxmark
from jaxmark.data.cases import PreparedCase, load_case, save_case
from jaxmark.system.files import sealed


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


class Hostile:
    """What runs when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "was unpickled"),)


def test_an_array_of_objects_is_refused_and_not_unpickled(case, tmp_path):
    found, _ = case
    path = found.folder / "image.npy"
    np.save(path, np.array([Hostile(tmp_path)], object), allow_pickle=True)
    refused(found.image, path, "not an array that jaxmark writes")
    # Nor if somebody has put the whole pickle where the array should be.
    path.write_bytes(pickle.dumps(Hostile(tmp_path)))
    refused(found.image, path, "damaged prepared image")
    assert not (tmp_path / "was unpickled").exists()


@pytest.mark.parametrize("header", [b"", b"{'a': (\n", b"{" * 100, b"(1e999, 1)", b"\x00" * 200])
def test_headers_that_are_none_are_refused(case, header):
    # numpy ends in a TokenError at some.
    path = case[0].folder / "image.npy"
    path.write_bytes(b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + bytes(99))
    refused(case[0].image, path, "not an array that jaxmark writes")


@pytest.mark.parametrize("value", [0.0, 1e308, 1e999])
def test_a_place_without_an_inverse_is_refused(case, value):
    path = case[0].folder / "case.json"
    tree = json.loads(path.read_text())
    tree["ijk_to_lps"][0] = [value, 0, 0, 0]
    del tree["crc32"]
    path.write_text(json.dumps(sealed(tree)))
    refused(lambda: load_case(case[0].folder), path, "a place without an inverse")


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2, 2)), np.zeros((2, 2), "f2"), np.zeros((0, 2, 2), "f2")]
)
def test_other_arrays_are_refused(case, array):
    found, _ = case
    np.save(found.folder / "image.npy", array)
    refused(found.image, "not an array that jaxmark writes")


RUNS = {"pickle", "marshal", "shelve", "dill", "joblib", "eval", "exec", "np.load"}


def test_no_reader_unpickles():
    """A file from a stranger must not run anything; what processes send each other is our own."""
    for path in Path(jaxmark.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                used = {getattr(node, "module", None), *(alias.name for alias in node.names)}
            elif isinstance(node, ast.Call):
                used = {ast.unparse(node.func)}
            else:
                continue
            assert not used & RUNS, f"{path}: {used}"


def test_runs_that_write_the_same_case_at_the_same_time_all_succeed(case):
    found, image = case
    with ThreadPoolExecutor(8) as pool:
        written = [pool.submit(save_case, found, image, found.folder) for _ in range(100)]
        for one in written:
            one.result()
    np.testing.assert_array_equal(load_case(found.folder).image(), image)
    assert [path.name for path in found.folder.parent.iterdir()] == [found.folder.name]
