"""Do the prompts and answers of an arm fit its language model? Asked before anything is trained."""

from collections.abc import Mapping

import numpy as np

from recipes.llm.preflight import check_new_tokens, check_positions, check_tokens
from recipes.prompting.ragged import Ragged
from recipes.prompting.written import written_titles
from recipes.run import Run
from recipes.scoring.rows import evaluated_rows

Longest = Mapping[str, tuple[int, int]]
"""Numbers of tokens of the longest prompt and of what follows it, by what they are."""


def check_answers(run: Run) -> None:
    """Refuse titles that cannot be written, or not within `evaluate.max_new_tokens` (ValueError).

    How many tokens an answer has matters only where answers are written.
    """
    store = run.outlined_prompts
    written_titles(run.outline.tokenizer, store.answer_ids, store.frame.end)
    config = run.experiment.evaluate
    if run.is_evaluated:
        check_new_tokens(store.answers, config.max_new_tokens, config.num_beams)


def longest_evaluated(run: Run, prompts: Ragged) -> Longest:
    """The longest prompt of the evaluated rows, if there are any, and what may follow it.

    Args:
        run: The run.
        prompts: Token ids of the prompts of all rows of `evaluate.split`.

    Raises:
        ValueError: The model has no embedding for a token.
    """
    if not run.is_evaluated:
        return {}
    config, answers = run.experiment.evaluate, run.outlined_prompts.answers
    rows = evaluated_rows(run.data, config).rows
    after = max(int(answers.lengths.max()), config.max_new_tokens or 0)
    return {f"{config.split} split": longest_prompt(run, prompts, rows, after)}


def longest_prompt(run: Run, prompts: Ragged, rows: np.ndarray, after: int) -> tuple[int, int]:
    """Number of tokens of the longest prompt of some rows, and of what follows it.

    Raises:
        ValueError: The model has no embedding for a token.
    """
    check_tokens(run.outline, prompts, run.outlined_prompts.answers)
    return int(prompts.lengths[rows].max()), after


def check_room(run: Run, longest: Longest, prompt_history: int) -> None:
    """Refuse prompts and answers that the model has too few positions for (ValueError)."""
    experiment = run.experiment
    check_positions(
        run.outline,
        dict(longest),
        f"lower adapt.prompt_history={prompt_history}, prepare.num_candidates="
        f"{experiment.prepare.num_candidates} or evaluate.max_new_tokens="
        f"{experiment.evaluate.max_new_tokens}, or choose another adapt.llm",
    )
