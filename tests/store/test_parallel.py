import os
import time

from utils.store.parallel import map_chunks


def total(chunk):
    return sum(chunk), os.getpid()


def slow_first(chunk):
    time.sleep(0.3 if chunk[0] == 0 else 0)
    return chunk


def test_results_come_in_order_and_cover_everything():
    found = list(map_chunks(slow_first, range(25), 4))
    assert [item for chunk in found for item in chunk] == list(range(25))
    assert [len(chunk) for chunk in found] == [4] * 6 + [1]


def test_one_chunk_is_done_here_and_more_elsewhere():
    assert list(map_chunks(total, range(10), 10)) == [(45, os.getpid())]
    assert os.getpid() not in {pid for _, pid in map_chunks(total, range(11), 10)}
    assert list(map_chunks(total, [], 10)) == []


def test_input_is_not_read_far_ahead():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield 1

    results = map_chunks(total, endless(), 10)
    next(results)
    assert taken <= 11 + 10 * 4 * 2 * len(os.sched_getaffinity(0))
    results.close()
