"""Co-occurrence: ranks candidates by the train users they share with the items of the history."""

import numpy as np

from recipes.about import About
from recipes.data.padding import PADDING
from recipes.methods.method import Arm, Method
from recipes.run import Run
from recipes.scoring.arrays import Floats
from recipes.scoring.predictions import Scorer
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

    def scorer(self, run: Run, arm: Arm, seed: int) -> Scorer:
        """Scores candidates by cosine with the history."""
        train, num_items = run.data.split("train"), run.data.num_items
        users = np.unique(train.user_ids, return_inverse=True)[1]
        met = np.zeros((users.max() + 1, num_items + 1), np.float32)  # the last column is padding
        met[users, train.targets] = 1
        met /= np.maximum(np.linalg.norm(met, axis=0), 1)

        def scores(rows: EvaluatedRows) -> Floats:
            histories = run.data.split(rows.split).histories[rows.rows]
            found = np.empty(rows.candidates.shape)
            for row, history in enumerate(histories):
                seen = met[:, np.where(history == PADDING, num_items, history)].sum(axis=1)
                wanted = met[:, :-1] if rows.whole_catalogue else met[:, rows.candidates[row]]
                found[row] = seen @ wanted
            return found

        return scores
