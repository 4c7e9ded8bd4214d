"""What was done to the interactions, in plain words that a report prints."""

from collections.abc import Mapping
from typing import Any, Literal

from recipes.experiment import PrepareConfig

Negatives = Literal["visible", "whole", "catalogue"]
NEGATIVES: dict[Negatives, str] = {
    "visible": "all items but the target and the visible history",
    "whole": "all items but those that the user ever meets",
    "catalogue": "all items but the target",
}
"""What negatives are drawn from, uniformly."""
DRAWN = "**Negatives**"
"""How the sentence on negatives begins."""
PROTOCOLS = {
    "llara": "as in LLaRA's published files, users are split 8:1:1 into train, validation and "
    "test in order of their first interactions, and a user's interactions have those files' order",
    "chronological": "users are split 8:1:1 into train, validation and test in order of their "
    "first interactions, and a user's interactions are in order of time; a train user's later "
    "interactions may follow a test user's first ones",
    "leave-one-out": "each user's last interaction is for testing, the one before for validation, "
    "and the others are for training (users with fewer than three have none to test); other users' "
    "training interactions may follow a tested one in time",
    "temporal": "two moments, the same for all users, cut time: interactions before the first are "
    "for training, those between for validation, those from the second on for testing. Every "
    "interaction is the target of one window of its split, whose history reaches back across the "
    "cuts; which windows of a split are evaluated, `evaluate.rows` says",
}
RULES = {
    "stable": "They keep the order of the file.",
    "item-id": "They are in ascending order of item_id, the number in items.parquet.",
    "random": "Their order is drawn from seed {seed}.",
    "drop": "They keep the order of the file, and no window of validation or test is kept whose "
    "target shares its time with another of the user's interactions.",
}


def notes(
    config: PrepareConfig,
    ties: Mapping[str, Any] | None,
    negatives: Negatives,
    recurring: bool,
    undrawn: str | None,
) -> list[str]:
    """Sentences on protocol, ties and negatives, in Markdown.

    Args:
        config: The stage's configuration.
        ties: The manifest's entry of ties; None where the order does not come from times.
        negatives: What is never a negative.
        recurring: Whether a user meets an item twice.
        undrawn: Why no candidates were drawn; None if they were.
    """
    found = [f"**Protocol `{config.protocol}`**: {PROTOCOLS[config.protocol]}."]
    if ties is not None and ties["share_of_neighbours"] > 0:
        found.append(
            f"**Equal times** (`prepare.ties: {ties['rule']}`): the last interaction of "
            f"{ties['users_with_tied_last']:,} of {ties['users']:,} users is at the time of the "
            f"one before, and {ties['share_of_neighbours']:.1%} of neighbouring interactions share "
            f"a time. {RULES[ties['rule']].format(seed=ties['seed'])}"
        )
    draw = f"{DRAWN} are drawn uniformly from {NEGATIVES[negatives]}."
    if undrawn is not None:
        draw = f"{DRAWN} were not drawn: {undrawn}."
    elif recurring and negatives != "catalogue":
        draw += (
            " Users meet items twice here, so a candidate that stands in the history can only be "
            "the target: figures are flattered. Use `prepare.negatives: catalogue` for sound ones."
        )
    found.append(draw)
    if config.titles == "reference":
        found.append("**Titles** are those of the reference implementation, with its mistakes.")
    return found
