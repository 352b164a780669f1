"""Active weights per layer: cases worked out by hand, and what holds for any shapes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.sparsity.distributions import erdos_renyi, uniform

SHAPES = {"a": (2, 4), "b": (4, 4), "c": (4, 8)}  # 8 + 16 + 32 = 56 weights; degrees 6 + 8 + 12 = 26


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (0, {"a": 8, "b": 16, "c": 32}),
        (0.5, {"a": 4, "b": 8, "c": 16}),
        (0.75, {"a": 2, "b": 4, "c": 8}),
        (0.9, {"a": 1, "b": 2, "c": 3}),  # round(5.6) = 6: shares 0.857, 1.714, 3.429; remainders give a and b
    ],
)
def test_uniform(sparsity, expected):
    assert uniform(SHAPES, sparsity) == expected


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (0.5, {"a": 6, "b": 9, "c": 13}),  # 28: shares 6.46, 8.62, 12.92; two left, for c and b
        (0.75, {"a": 3, "b": 4, "c": 7}),  # 14: shares 3.23, 4.31, 6.46; one left, for c
        (0, {"a": 8, "b": 16, "c": 32}),
    ],
)
def test_erdos_renyi(sparsity, expected):
    assert erdos_renyi(SHAPES, sparsity) == expected


def test_a_layer_that_would_exceed_its_size_is_dense_and_the_others_share_the_rest():
    # 100 active over degrees 5, 20, 101: all within their sizes (3.97, 15.87, 80.16)
    # 150 active: 5.95, 23.8, 120.2 of 6, 100, 100: the third is dense, and 50 over degrees 5, 20 are 10, 40: the first
    # too
    layers = {"small": (2, 3), "square": (10, 10), "wide": (1, 100)}
    assert erdos_renyi(layers, 1 - 100 / 206) == {"small": 4, "square": 16, "wide": 80}
    assert erdos_renyi(layers, 1 - 150 / 206) == {"small": 6, "square": 44, "wide": 100}


shapes = st.dictionaries(
    st.text(min_size=1, max_size=3), st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6
)


@pytest.mark.parametrize("distribution", [uniform, erdos_renyi])
@given(shapes=shapes, percent=st.integers(0, 99))
def test_counts_are_exact_and_fit(distribution, shapes, percent):
    counts = distribution(shapes, percent / 100)
    sizes = {name: n_in * n_out for name, (n_in, n_out) in shapes.items()}
    assert list(counts) == list(shapes)
    assert all(0 <= counts[name] <= sizes[name] for name in shapes)
    assert abs(100 * sum(counts.values()) - (100 - percent) * sum(sizes.values())) <= 50


def test_ties_fall_by_name_whatever_the_order():
    # 6 of 12 active over equal layers of 4: 2 each. 7: 2.33 each, the one left goes to the first by name; 8: to the
    # first two.
    for order in ("abc", "cba", "bca"):
        layers = dict.fromkeys(order, (2, 2))
        assert uniform(layers, 0.5) == erdos_renyi(layers, 0.5) == {"a": 2, "b": 2, "c": 2}
        assert uniform(layers, 5 / 12) == erdos_renyi(layers, 5 / 12) == {"a": 3, "b": 2, "c": 2}
        assert uniform(layers, 4 / 12) == erdos_renyi(layers, 4 / 12) == {"a": 3, "b": 3, "c": 2}


@pytest.mark.parametrize("distribution", [uniform, erdos_renyi])
@given(shapes=shapes, percent=st.integers(0, 99), random=st.randoms())
def test_counts_depend_on_the_layers_alone(distribution, shapes, percent, random):
    order = list(shapes)
    random.shuffle(order)
    assert distribution({name: shapes[name] for name in order}, percent / 100) == distribution(shapes, percent / 100)


@given(shapes=shapes, percent=st.integers(50, 99))
def test_erdos_renyi_is_proportional_to_degree_where_nothing_is_full(shapes, percent):
    counts = erdos_renyi(shapes, percent / 100)
    free = [name for name, (n_in, n_out) in shapes.items() if counts[name] < n_in * n_out - 1]
    for first in free:
        for second in free:
            ratio = sum(shapes[first]) / sum(shapes[second])
            assert counts[first] <= ratio * (counts[second] + 1) + 1
