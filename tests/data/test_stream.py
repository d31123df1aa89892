"""Endless synthetic cases: what is read where, how far ahead it is drawn, and by whom."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.data.pipeline import CASE, streamed_batches
from jaxmark.data.stream import Order, Source, drawing_pool

ORDER = Order(seed=5, window=4, reuse=3)


def drawn(number):
    return {"image": np.full((2, 2, 2, 1), number, np.uint8)}


def noted(numbers, number):
    """As `drawn`, by threads of this process, whose work can be seen."""
    numbers.append(number)
    return drawn(number)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def stream(pool, draw=drawn, order=ORDER, **changes):
    settings = {"batch": 2, "threads": 2, "prefetch": 2, **changes}
    return streamed_batches(draw, order, pool, **settings)


def numbers(iterator, batches):
    found = []
    for _ in range(batches):
        batch = next(iterator)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0, 0], batch[CASE])
        found += batch[CASE].tolist()
    return found


def test_each_case_is_read_as_often_as_is_asked_in_blocks_that_follow_each_other():
    blocks = [[ORDER.number(12 * b + place) for place in range(12)] for b in range(6)]
    for b, block in enumerate(blocks):
        assert sorted(block) == list(range(4 * b, 4 * b + 12))
        assert block != sorted(block)
    read = Counter(sum(blocks, []))
    # Those of the first two blocks and the last two would be read before and after.
    assert all(read[number] == 3 for number in range(8, 24))
    for number in range(24):
        assert number in blocks[min(ORDER.last_block(number), 5)]
        assert all(number not in block for block in blocks[ORDER.last_block(number) + 1 :])


def test_the_order_is_a_function_of_its_settings():
    def first(**changes):
        return [ORDER._replace(**changes).number(p) for p in range(24)]

    assert first() == first() != first(seed=6)
    assert first(reuse=1) != first()


def test_a_case_is_drawn_once_and_a_bounded_number_ahead(threads):
    seen = []
    source = Source(partial(noted, seen), ORDER, threads)
    for position in range(60):
        number, case = source(position)
        assert number == ORDER.number(position) == case["image"][0, 0, 0, 0]
        ahead = {ORDER.number(p) for p in range(position + 13)}
        assert set(seen) <= ahead
    assert max(Counter(seen).values()) == 1
    # Those that are not read again are forgotten.
    assert len(source._drawn) <= 6 * 4


def test_the_stream_is_that_of_the_order_whatever_reads_it(threads):
    expected = [ORDER.number(p) for p in range(40)]
    assert numbers(stream(threads), 20) == expected
    assert numbers(stream(threads, threads=4, prefetch=8), 20) == expected


def test_a_restored_stream_continues_with_the_next_batch(threads):
    first = stream(threads)
    numbers(first, 7)
    state = first.get_state()
    expected = numbers(first, 12)
    second = stream(threads)
    second.set_state(state)
    assert numbers(second, 12) == expected == [ORDER.number(p) for p in range(14, 38)]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_of_a_run_share_the_stream_and_draw_their_own(threads, processes):
    seen = [[] for _ in range(processes)]
    shares = [
        stream(threads, partial(noted, seen[p]), batch=4, process=p, processes=processes)
        for p in range(processes)
    ]
    found = [n for _ in range(8) for share in shares for n in numbers(share, 1)]
    assert found == [ORDER.number(p) for p in range(32)]
    if processes == 4:
        # Of 12 cases of each block a process reads a quarter of the positions.
        assert all(len(numbers) < 16 for numbers in seen)


def test_worker_processes_draw_the_same_people_as_this_one():
    draw = CirclePhantom(seed=2).drawing((20, 18, 16), (4.0, 4.0, 4.0))
    order = Order(seed=1, window=2, reuse=1)
    found = []
    for workers in (1, 2):
        with drawing_pool(workers) as pool:
            batches = stream(pool, draw, order)
            found.append([next(batches) for _ in range(2)])
    for one, other in zip(*found, strict=True):
        assert one[CASE].tolist() == other[CASE].tolist()
        for at, number in enumerate(one[CASE]):
            here = draw(int(number))
            for batch in (one, other):
                assert batch["image"][at].tobytes() == here["image"].tobytes()
                tissues = batch["targets"]["tissues"][at]
                assert tissues.tobytes() == here["targets"]["tissues"].tobytes()


def test_an_error_of_drawing_reaches_who_reads(threads):
    with pytest.raises(ZeroDivisionError):
        next(stream(threads, partial(divmod, 1), Order(0, 1, 1)))
