"""A uniformly random order of the candidates, which is the lower baseline."""

from typing import NoReturn

from recipes.about import About
from recipes.experiment import EvaluateConfig
from recipes.methods.method import Arm, Method
from recipes.run import Run
from recipes.scoring.rows import EvaluatedRows


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

    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> NoReturn:
        """Is never called, see `is_random_order`."""
        raise NotImplementedError
