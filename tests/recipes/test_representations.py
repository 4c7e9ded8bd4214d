"""Scores of candidates and of all items from a recommender's vectors."""

import numpy as np
import pytest
import torch

from recipes.recommenders.representations import Representations


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize(("num_items", "width"), [(37, 64), (101, 384), (50, 7)])
def test_items_with_one_vector_tie_exactly_whoever_the_user(rows, num_items, width):
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(num_items, width, generator=generator)
    twins = [(0, num_items - 1), (1, num_items // 2)]
    for one, other in twins:
        items[other] = items[one]
    users = torch.randn(rows, width, generator=generator)
    vectors, numbers = Representations({"test": users}, items), np.arange(rows)
    everything = np.tile(np.arange(num_items), (rows, 1))
    catalogue = vectors.catalogue_scores("test", numbers)
    sampled = vectors.scores("test", numbers, everything)
    for scores in (catalogue, sampled):
        torch.testing.assert_close(scores, users @ items.T)
        for one, other in twins:
            assert torch.equal(scores[:, one], scores[:, other])


def test_candidates_of_a_row_tie_where_the_first_of_their_kind_is_no_candidate():
    items = torch.tensor([[1.0, 2], [3, 4], [1, 2], [1, 2]])
    vectors = Representations({"test": torch.ones(2, 2)}, items)
    found = vectors.scores("test", [0, 1], np.array([[3, 1, 2], [2, 0, 1]]))
    assert found.tolist() == [[3, 7, 3], [3, 3, 7]]
