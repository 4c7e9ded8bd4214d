"""How often a language model's choice changes with the order in which candidates are listed.

The order is arbitrary, so a choice that changes with it is owed to the prompt and not to the user.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recipes.experiment import EvaluateConfig
from recipes.llm.prompted import PromptedModel
from recipes.scoring.arrays import Floats, Ints
from recipes.scoring.rank import score_candidates
from recipes.scoring.rows import EvaluatedRows


@dataclass(frozen=True)
class OrderChanges:
    """What became of m rows whose prompts listed the same candidates in other orders."""

    rows: Ints
    """int64 [m], ascending row numbers of the split."""
    user_ids: Ints
    """int64 [m], user id of each row."""
    changed: Floats
    """float64 [m], share of the orders in which another candidate was the likeliest."""
    answers: Floats | None = None
    """float64 [m], share of the orders in which another answer was written, apart from case and
    white space; None if none were written."""


Write = Callable[[EvaluatedRows], Sequence[str]]
"""Writes the answers to the prompts of some rows."""


def order_changes(
    adapted: PromptedModel,
    label: str,
    rows: EvaluatedRows,
    scores: Floats,
    config: EvaluateConfig,
    texts: Sequence[str] | None = None,
    write: Write | None = None,
) -> OrderChanges | None:
    """Rank some rows again, with their candidates in random orders, which are always the same ones.

    Where answers are written, they are written again, too.

    Candidates that tie by their title count as one. Rows without finite scores are not tried.

    Args:
        adapted: Model and prompts.
        label: Label of progress bars.
        rows: The n evaluated rows, one draw of candidates each.
        scores: float64 [n, c], the candidates' scores in the frozen order.
        config: `order_rows`, `order_permutations`, and the settings of ranking.
        texts: The n answers under the frozen order; None if none were written.
        write: Writes answers to prompts that list another order; given with `texts`.

    Returns:
        What changed; None if nothing was tried.
    """
    usable = np.flatnonzero(np.isfinite(scores).all(axis=1))
    count = min(config.order_rows, len(usable))
    if not count or not adapted.lists_candidates:
        return None
    places = usable[np.linspace(0, len(usable) - 1, count).round().astype(np.int64)]
    tried, first = rows.take(places), scores[places].argmax(axis=1)
    changed, rewritten = np.zeros(count), np.zeros(count)
    for number in range(config.order_permutations):
        listed = np.random.default_rng(number).permuted(tried.candidates, axis=1)
        with adapted.listing(rows.split, tried.rows, listed):
            again = score_candidates(
                adapted,
                rows.split,
                tried.rows.tolist(),
                adapted.prompt_lengths(rows.split, tried.rows.tolist()),
                tried.candidates,
                batch_size=config.batch_size,
                length_normalised=config.length_normalised,
                title=f"rank {label}, other order",
            )
            answers = None if write is None else write(tried)
        changed += again.argmax(axis=1) != first
        if texts is not None and answers is not None:
            before = [texts[int(place)] for place in places]
            rewritten += [
                _shape(one) != _shape(two) for one, two in zip(before, answers, strict=True)
            ]
    orders = config.order_permutations
    written = None if texts is None else rewritten / orders
    return OrderChanges(tried.rows, tried.user_ids, changed / orders, written)


def _shape(text: str) -> str:
    return " ".join(text.split()).casefold()
