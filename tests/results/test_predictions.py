"""What methods learned of landmarks, on its way to the report."""

import dataclasses
import json

import numpy as np
import pytest

from jaxmark.methods.method import Method
from jaxmark.results.predictions import LEARNED, read_learned, write_learned
from jaxmark.system.errors import InputError

PLAIN = Method(init=lambda key: None, phases=(), stages=())
WIDTHS = dataclasses.replace(PLAIN, learned=lambda params: {"sigma_mm": params["s"]})


def test_learned_numbers_are_written_said_and_read(tmp_path):
    line = write_learned(WIDTHS, {"s": np.array([2.5, 1.25, 4.0])}, ("a", "b", "c"), tmp_path)
    assert line == "learned: sigma_mm 1.25 (b) to 4 (c)"
    assert read_learned(tmp_path, ("a", "b", "c")) == {"sigma_mm": {"a": 2.5, "b": 1.25, "c": 4.0}}


def test_a_method_that_learns_none_writes_nothing(tmp_path):
    assert write_learned(PLAIN, {}, ("a",), tmp_path) == ""
    assert read_learned(tmp_path, ("a",)) == {} and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"landmarks": ["b"], "learned": {}}, "is of other landmarks"),
        ({"landmarks": ["a"]}, "lacks a field"),
        ({"landmarks": ["a"], "learned": {"sigma_mm": [1, 2]}}, "lacks a field or has a wrong one"),
        ({"landmarks": ["a"], "learned": {"sigma_mm": ["x"]}}, "lacks a field or has a wrong one"),
        ({"landmarks": ["a"], "learned": [1]}, "lacks a field or has a wrong one"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, tree, message):
    (tmp_path / LEARNED).write_text(json.dumps({"schema_version": 1, **tree}))
    with pytest.raises(InputError, match=rf"learned\.json: {message}"):
        read_learned(tmp_path, ("a",))
