"""Co-occurrence: ranks candidates by the train users they share with the items of the history."""

import numpy as np

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.experiment import EvaluateConfig
from recipes.methods.method import Arm, Method
from recipes.run import Run
from recipes.scoring.predictions import Predictions
from recipes.scoring.rows import EvaluatedRows


class CoOccurrence(Method):
    """Sum over the visible history of the cosine between item columns of the user-item matrix.

    Item-based collaborative filtering (Sarwar et al., WWW 2001, Section 3.1.1) on train users.
    """

    name = "co-occurrence"
    summary = "items that share train users with the history (item-based cosine)"
    about = About(
        title="Co-occurrence",
        meaning="candidates ranked by how many train users they share with the history's items",
        order=14,
        ranks_by="co-occurrence",
    )

    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> Predictions:
        """Score candidates by cosine with the history."""
        train, num_items = run.data.split("train"), run.data.num_items
        users = np.unique(train.user_ids, return_inverse=True)[1]
        met = np.zeros((users.max() + 1, num_items + 1), np.float32)  # the last column is padding
        met[users, train.targets] = 1
        met /= np.maximum(np.linalg.norm(met, axis=0), 1)
        histories = run.data.split(rows.split).histories[rows.rows]
        scores = np.empty(rows.candidates.shape)
        for row, (history, candidates) in enumerate(zip(histories, rows.candidates, strict=True)):
            profile = met[:, np.where(history == PADDING, num_items, history)].sum(axis=1)
            scores[row] = profile @ met[:, candidates]
        return Predictions(scores)
