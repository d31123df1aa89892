"""Bounds of settings: what they refuse, and where they say it."""

import dataclasses
import math

import pytest
from conftest import refused

from jaxmark import bounds
from jaxmark.bounds import check, setting


def settings(default, *limits):
    """An instance with one field, `x`."""
    kind = dataclasses.make_dataclass("Settings", [("x", object, setting(default, *limits))])
    return kind()


@pytest.mark.parametrize(
    ("bound", "good", "bad", "problem"),
    [
        (bounds.at_least(1), (1, 2.5), (0, math.nan, math.inf), "is not a number of at least 1"),
        (bounds.between(0, 1), (0.5,), (0, 1, math.nan), "is not between 0 and 1"),
        (bounds.POSITIVE, (1e-9,), (0, -1, math.nan), "is not positive"),
        (bounds.NOT_NEGATIVE, (0,), (-1, math.nan), "is negative"),
        (bounds.SHARE, (0, 1), (-0.1, 1.1, math.nan), "is not between 0 and 1"),
        (bounds.one_of("a", "b"), ("a",), ("c",), "'c' is not one of ('a', 'b')"),
        (bounds.either("a", "b"), ("b",), ("c",), "'c' is not 'a' or 'b'"),
        (bounds.VOXELS, ((1, 2, 3),), ((1, 2), (1, 2, 0), (1, 2, 3.5)), "three positive whole"),
        (bounds.LENGTHS, ((1, 2.5, 3),), ((1, 2, -1.0), (1.0,)), "is not three positive numbers"),
        (bounds.positive_numbers("needs two", 2), ((1, 1),), ((1,), (), (0, 1)), "needs two"),
    ],
)
def test_a_bound_names_field_and_value(bound, good, bad, problem):
    for value in (*good, None):
        check(settings(value, bound), "config.part")
    for value in bad:
        refused(lambda value=value: check(settings(value, bound), "config.part"), problem)
        refused(lambda value=value: check(settings(value, bound), "config.part"), "config.part.x: ")


@dataclasses.dataclass
class Inner:
    few: int = setting(1, bounds.at_least(0))


@dataclasses.dataclass
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    more: int = 3
    anything: object = None

    def conflicts(self):
        if self.inner.few > self.more:
            yield "inner.few", f"{self.inner.few} is more than {self.more}"
        if self.more == 4:
            yield "", "must not be four"

    def misfits(self, task):
        if task == "narrow":
            yield "config.data.crop", "is too narrow"


def test_fields_of_fields_have_their_whole_path():
    refused(lambda: check(Outer(Inner(-1)), "config"), "config.inner.few: -1 is not a number")


def test_what_does_not_go_together_is_named_where_it_stands():
    check(Outer(), "config")
    refused(lambda: check(Outer(Inner(5)), "config"), "config.inner.few: 5 is more than 3")
    refused(lambda: check(Outer(more=4), "config.a"), "config.a: must not be four")
    check(Outer(), "config.method", "wide")
    refused(lambda: check(Outer(), "config.method", "narrow"), "config.data.crop: is too narrow")


@dataclasses.dataclass
class Several:
    share: float = setting(0.5, bounds.at_least(0), bounds.SHARE)
    other: Inner | None = None
    count: int = setting(1, bounds.POSITIVE)

    def conflicts(self):
        if self.share == 1:
            yield "config.elsewhere.field", "does not go with a share of 1"
            yield "count", "is never told"


def test_the_first_problem_is_told_and_single_fields_come_before_what_they_are_together():
    def said(**changes):
        with pytest.raises(ValueError) as caught:
            check(Several(**changes), "config.part")
        return str(caught.value)

    # Of two bounds that which does not hold; of two fields the first.
    assert said(share=-1.0) == "config.part.share: -1.0 is not a number of at least 0"
    assert said(share=1.5, count=0) == "config.part.share: 1.5 is not between 0 and 1"
    assert said(other=Inner(-1), count=0).startswith("config.part.other.few: -1 is not")
    assert said(share=1, count=0) == "config.part.count: 0 is not positive"
    # What lies in another part of the config has its own path.
    assert said(share=1) == "config.elsewhere.field: does not go with a share of 1"
