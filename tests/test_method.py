import ast
import doctest
import inspect

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import utils.method
from utils.method import SAMPLERS, SHIFT_RANKS, descending, fuse, min_max, passages_needed

scores = arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6))


@given(scores)
def test_min_max_spans_zero_to_one_and_keeps_the_order(values):
    found = min_max(values)
    if np.ptp(values) == 0:
        assert not found.any()
    else:
        assert found.min() == 0
        assert found.max() == 1
    assert (np.diff(found[np.argsort(values)]) >= 0).all()


def test_min_max_of_a_constant_list_lets_the_other_list_decide():
    assert fuse([3, 3, 3], [1, 5, 2]).tolist() == [0, 0.5, 0.125]


def test_a_block_of_questions_is_fused_like_each_of_them():
    rng = np.random.default_rng(0)
    reason, retrieval = rng.normal(size=(5, 50)), rng.normal(size=(5, 50))
    block = fuse(reason, retrieval, 0.3)
    assert (block == [fuse(a, b, 0.3) for a, b in zip(reason, retrieval, strict=True)]).all()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_of_the_weight_are_the_single_lists(weight):
    rng = np.random.default_rng(1)
    reason, retrieval = rng.normal(size=50), rng.normal(size=50)
    assert (descending(fuse(reason, retrieval, weight)) == descending(reason if weight else retrieval)).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_equal_scores_keep_their_order(values):
    order = descending(values)
    assert sorted(order) == list(range(len(values)))
    pairs = [(-values[i], i) for i in order]
    assert pairs == sorted(pairs)


def test_shift_takes_the_published_ranks():
    assert SHIFT_RANKS == (3, 4, 6, 9, 13, 18)
    assert SAMPLERS["shift"](range(20)) == [([0], [3, 4, 6, 9, 13, 18])]


def test_shift_all_neg_takes_every_rank_from_three():
    assert SAMPLERS["shift_all_neg"](range(20)) == [([0], list(range(3, 20)))]


def test_iteration_pairs_each_passage_with_those_after_it_in_its_window():
    groups = SAMPLERS["iteration"](range(20))
    assert len(groups) == 16
    assert groups[:4] == [([0], [1, 2, 3, 4]), ([1], [2, 3, 4]), ([2], [3, 4]), ([3], [4])]
    assert groups[-1] == ([18], [19])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_gives_full_groups_from_as_many_passages_as_it_says(name):
    needed = passages_needed(name, 20)
    shapes = [(len(pos), len(neg)) for pos, neg in SAMPLERS[name](range(needed))]
    assert shapes == [(len(pos), len(neg)) for pos, neg in SAMPLERS[name](range(20))]


def test_the_examples_in_the_docstrings_run():
    tried = doctest.testmod(utils.method)
    functions = [thing for thing in vars(utils.method).values() if inspect.isfunction(thing)]
    assert tried.failed == 0
    assert tried.attempted >= len(functions) > 5  # every function has an example


def test_the_file_holds_arithmetic_alone():
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse((ROOT / "utils/method.py").read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"__future__", "collections.abc", "typing", "numpy", "numpy.typing"}
