import pytest

from utils.rag.statistics import bootstrap


def test_agrees_with_the_normal_approximation():
    found = bootstrap([1.0] * 300 + [0.0] * 700, seed=42)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (found.mean, found.n) == (0.3, 1000)
    assert found.low == pytest.approx(0.3 - half, abs=0.003)
    assert found.high == pytest.approx(0.3 + half, abs=0.003)


def test_follows_the_seed():
    values = [1.0, 0.0, 0.0] * 37
    assert bootstrap(values, 1) == bootstrap(values, 1)
    assert len({str(bootstrap(values, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0, 1.0], [0.0, 0.0]])
def test_no_interval_where_resampling_says_nothing(values):
    found = bootstrap(values, 42)
    assert (found.mean, found.low, found.high) == (values[0], None, None)
