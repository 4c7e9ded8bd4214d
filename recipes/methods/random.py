"""A uniformly random order of the candidates, which is the lower baseline."""

from recipes.about import About
from recipes.methods.method import Method


class Random(Method):
    """Random order. Its expected metrics are known exactly, so no order is ever drawn."""

    name = "random"
    summary = "candidates in random order; its expectation is exact"
    about = About(
        title="Random order",
        meaning="candidates in random order; its expectation is exact",
        order=0,
        ranks_by="random order",
    )
    is_random_order = True
