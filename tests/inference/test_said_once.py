"""Doubts of a scan are said once."""

from jaxmark.inference.model import _said_once


def test_a_doubt_that_a_longer_one_says_as_well_is_left_out():
    seen = "the network sees less of the landmarks (evidence -1.9)"
    share = "1 % of the prepared volume lies in the scan"
    doubts = [
        f"probably not such a scan: {seen}",
        f"only {share}",
        "the network sees less of the landmarks (evidence 2.5)",
        f"{share}, in the validation cases at least 100 %",
        "A: outside of the scan, hidden",
    ]
    assert _said_once(doubts) == [doubts[0], doubts[3], doubts[4]]
    assert _said_once(["a doubt", "a doubt"]) == ["a doubt", "a doubt"]
