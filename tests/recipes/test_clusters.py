"""Clusters of users, and weights by distance."""

import math

import pytest
import torch

from recipes.methods.clusters import centroids, log_weights, spread

FOUR = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]])


def test_centroids_are_the_means_of_groups() -> None:
    found = centroids(FOUR, 2)
    assert sorted(found.tolist()) == [[0.0, 1.0], [10.0, 1.0]]
    assert torch.equal(found, centroids(FOUR, 2))
    assert spread(FOUR, found) == 1.0


def test_the_nearest_cluster_has_all_weight_or_its_share() -> None:
    centres, user = torch.tensor([[0.0, 1.0], [3.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    assert log_weights(user, centres, None).softmax(dim=1).tolist() == [[1.0, 0.0]]
    shares = log_weights(user, centres, 2.0).exp()[0].tolist()  # squared distances 1 and 4
    assert shares == pytest.approx([1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1.5))])


def test_fewer_different_users_than_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="adapt.num_experts=3: the 4 train windows do not fall"):
        centroids(FOUR[[0, 0, 1, 1]], 3)
