"""What the stand-in's titles start from: which titles train users choose near each other.

The rows of `U sqrt(S)` of a truncated SVD of the positive pointwise mutual information of titles
(Levy and Goldberg, NeurIPS 2014, Section 3.3). A real language model would bring knowledge of the
titles from its texts; this takes its place.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import svds

from recipes.data.padding import PADDING
from recipes.data.tables import Split


def co_occurrences(train: Split, kinds: NDArray[np.integer]) -> csr_array:
    """How often two titles stand in one train window, one of them as its target.

    So two titles meet whenever one user chooses both within `prepare.max_history` steps.

    Args:
        train: The train windows.
        kinds: Integers [num_items], number of each item's title.

    Returns:
        float64 [titles, titles], symmetric; the diagonal is empty.
    """
    rows, columns = np.nonzero(train.histories != PADDING)
    seen, chosen = kinds[train.histories[rows, columns]], kinds[train.targets[rows]]
    differ = seen != chosen
    pairs = (
        np.concatenate([seen[differ], chosen[differ]]),
        np.concatenate([chosen[differ], seen[differ]]),
    )
    count = int(kinds.max()) + 1
    return csr_array(coo_array((np.ones(len(pairs[0])), pairs), (count, count)))


def positive_information(counts: csr_array) -> csr_array:
    """`max(0, log(p(i, j) / (p(i) p(j))))` of co-occurrences, where they are not 0."""
    found: Any = coo_array(counts)
    marginal = np.asarray(found.sum(axis=1)).ravel()
    rows, columns = found.coords
    ratio = found.data * marginal.sum() / (marginal[rows] * marginal[columns])
    kept = ratio > 1
    return csr_array(
        coo_array((np.log(ratio[kept]), (rows[kept], columns[kept])), shape=counts.shape)
    )


def title_vectors(
    train: Split, kinds: NDArray[np.integer], width: int, seed: int
) -> NDArray[np.float64]:
    """A vector of unit length for each title that train users choose near others; else of zeros.

    The same windows give the same vectors: the SVD starts from a vector of its own seed, and each
    component's largest entry is positive.

    Args:
        train: The train windows.
        kinds: Integers [num_items], number of each item's title, from 0.
        width: Length of a vector; components beyond the number of titles are 0.
        seed: Seed of the SVD's start.

    Returns:
        float64 [titles, width].
    """
    information: Any = positive_information(co_occurrences(train, kinds))
    count = information.shape[0]
    found = np.zeros((count, width))
    components = min(width, count - 1)
    if components > 0 and information.nnz:
        start = np.random.default_rng(seed).standard_normal(count)
        decomposed: Any = svds(information, k=components, v0=start, solver="arpack")
        left, values, _ = decomposed
        order = np.argsort(-values)
        left, values = left[:, order], values[order]
        left *= np.sign(left[np.abs(left).argmax(axis=0), np.arange(components)])
        found[:, :components] = left * np.sqrt(np.maximum(values, 0))
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    known = lengths > 1e-6
    return np.divide(found, lengths, out=np.zeros_like(found), where=known)
