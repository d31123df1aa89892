"""The Circle-of-Willis scheme against statements written out by hand."""

import numpy as np
import pytest

from jaxmark.core.anatomy import COW19, Scheme, Segment, scheme_of


def attributes(*missing):
    present = [segment.name not in missing for segment in COW19.segments]
    result = COW19.landmark_attributes(present)
    return {name for name, good in zip(COW19.landmarks, result, strict=True) if not good}


def test_the_scheme_has_the_papers_numbers():
    assert len(COW19.landmarks) == 19 and len(COW19.segments) == 20
    assert len(COW19.symmetric_pairs) == 9
    # The papers name landmarks by number: 5 and 6 are M1/M2, 12 and 13 are P2A/P2P.
    assert {COW19.landmarks[5 - 1], COW19.landmarks[6 - 1]} == {"M1/M2 R", "M1/M2 L"}
    assert {COW19.landmarks[12 - 1], COW19.landmarks[13 - 1]} == {"P2A/P2P R", "P2A/P2P L"}
    assert COW19.landmarks[11 - 1] == "BA tip"


def test_every_segment_has_two_ends_but_the_basilar_artery():
    ends = dict(zip([s.name for s in COW19.segments], COW19.incidence.sum(1), strict=True))
    assert ends.pop("BA") == 1
    assert set(ends.values()) == {2}


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ((), "complete circle"),
        (("P1 R",), "P1 R missing: fetal PCA right"),
        (("PCoA L",), "PCoA L missing"),
        (("A1 R",), "A1 R missing: both A2 from the left"),
        (("A1 L", "P1 L"), "A1 L missing: both A2 from the right; P1 L missing: fetal PCA left"),
        (("ACoA",), "ACoA missing"),
        # Nothing is left that could feed what lies behind.
        (("PCoA R", "P1 R"), "PCoA R missing; P1 R missing"),
        (("A1 R", "ACoA"), "A1 R missing; ACoA missing"),
        (("A1 R", "A1 L"), "A1 R missing; A1 L missing"),
    ],
)
def test_variants_in_words(missing, words):
    assert COW19.variant([segment.name not in missing for segment in COW19.segments]) == words


def test_variants_name_segments_and_have_their_mirror_image():
    names = {segment.name for segment in COW19.segments}
    swap = str.maketrans("RL", "LR")
    for variant in COW19.variants:
        assert {variant.missing, *variant.others} <= names
        twin = next(v for v in COW19.variants if v.missing == variant.missing.translate(swap))
        assert set(twin.others) == {
            name.translate(swap) if name[-2] == " " else name for name in variant.others
        }


def test_variants_of_an_own_scheme():
    own = scheme_of(["a", "b"], [Segment("one", ()), Segment("two", ("a",), may_be_missing=True)])
    assert own.variant([True, False]) == "two missing"
    assert own.variant([True, True]) == "no segment missing"


def test_a_complete_circle_has_all_bifurcations():
    assert attributes() == set()


def test_a_missing_segment_takes_the_bifurcations_at_its_ends():
    assert attributes("PCoA R") == {"ICA/PCoA R", "P1/P2A R"}
    assert attributes("P1 L") == {"BA tip", "P1/P2A L"}
    assert attributes("ACoA") == {"A1/A2 R", "A1/A2 L"}
    assert attributes("A1 L") == {"ICA terminus L", "A1/A2 L"}
    assert attributes("ACoA", "A1 L") == {"ICA terminus L", "A1/A2 L", "A1/A2 R"}


def test_only_ends_of_segments_that_may_be_missing_may_change():
    changing = {n for n, may in zip(COW19.landmarks, COW19.may_change, strict=True) if may}
    sides = {f"{n} {s}" for n in ("ICA terminus", "A1/A2", "P1/P2A", "ICA/PCoA") for s in "RL"}
    assert changing == sides | {"BA tip"}


def test_attributes_of_many_people_at_once():
    rng = np.random.default_rng(0)
    present = rng.random((3, 5, 20)) < 0.8
    result = COW19.landmark_attributes(present)
    assert result.shape == (3, 5, 19)
    for index in np.ndindex(3, 5):
        missing = [
            s.name for s, there in zip(COW19.segments, present[index], strict=True) if not there
        ]
        bad = {n for n, good in zip(COW19.landmarks, result[index], strict=True) if not good}
        assert bad == attributes(*missing)


def test_mirroring_twice_is_nothing_and_exchanges_sides():
    assert (COW19.mirrored[COW19.mirrored] == np.arange(19)).all()
    assert COW19.landmarks[COW19.mirrored[COW19.landmark("A1/A2 R")]] == "A1/A2 L"
    assert COW19.mirrored[COW19.landmark("BA tip")] == COW19.landmark("BA tip")


def test_a_name_that_no_landmark_has_is_refused():
    with pytest.raises(ValueError, match="'c' is not one of its landmarks"):
        Scheme("bad", ("a", "b"), (), (Segment("s", ("a", "c")),))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("orbit right", "nose", "orbit left"), (("orbit right", "orbit left"),)),
        (
            ("R_eye", "L_eye", "RIGHT ear", "LEFT ear"),
            (("R_eye", "L_eye"), ("RIGHT ear", "LEFT ear")),
        ),
        # Only whole words, and only where there are both.
        (("1", "2", "ring", "fling", "A R", "B L"), ()),
        # Which of two words stands for the side is not known.
        (("R r", "L l"), ()),
    ],
)
def test_pairs_are_read_from_names(names, pairs):
    scheme = scheme_of(names)
    assert scheme.landmarks == names and scheme.symmetric_pairs == pairs


def test_the_circle_is_known_by_its_landmarks():
    assert scheme_of(COW19.landmarks) is COW19
    # The pairs are those that the names would give.
    assert scheme_of(COW19.landmarks[::-1]).symmetric_pairs == COW19.symmetric_pairs[::-1]


def test_mirrored_segments_join_mirrored_landmarks():
    twin = COW19.mirrored_segments
    np.testing.assert_array_equal(twin[twin], np.arange(20))
    np.testing.assert_array_equal(COW19.incidence[twin][:, COW19.mirrored], COW19.incidence)
    alone = [s.name for k, s in enumerate(COW19.segments) if twin[k] == k]
    assert alone == ["ACoA", "BA"]


def test_segments_without_ends_are_mirrored_by_their_names():
    named = [Segment("left PCA", ()), Segment("BA", ()), Segment("right PCA", ())]
    assert scheme_of(("a",), named).mirrored_segments.tolist() == [2, 1, 0]


def test_segments_without_sides_in_their_names_are_mirrored_by_their_ends():
    names = ("a R", "a L", "middle")
    arms = [Segment("one", ("a R", "middle")), Segment("two", ("a L", "middle"))]
    assert scheme_of(names, arms).mirrored_segments.tolist() == [1, 0]
    # Of two with the same ends it is not known which is whose.
    doubled = [*arms, Segment("three", ("a L", "middle"))]
    assert scheme_of(names, doubled).mirrored_segments.tolist() == [0, 1, 2]


def test_segments_that_ends_do_not_tell_are_paired_by_their_names():
    def twins(*segments):
        return Scheme("own", ("A R", "A L"), (("A R", "A L"),), segments).mirrored_segments.tolist()

    # A label table may know no ends.
    assert twins(Segment("P1 L", ()), Segment("BA", ()), Segment("P1 R", ())) == [2, 1, 0]
    assert twins(Segment("one", ("A R",)), Segment("two", ("A R",))) == [0, 1]
    # Names come before ends.
    right, left = Segment("x", ("A R",)), Segment("y L", ("A L",))
    assert twins(right, left, Segment("y R", ())) == [0, 2, 1]
