"""A data collator that brings routing embeddings from a dataset's rows into the batch."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peft_ilora.routing.binding import KEYWORD

_ANSWERS = ("chosen_ids", "rejected_ids", "reference_ids")


class RoutingCollator:
    """Takes the routing off every row, lets another collator do the rest, adds the routing again.

    Where it makes several rows of each, as of pairs (`chosen_ids`, `rejected_ids`), all of them
    have the pair's routing. Picklable where the inner collator is, so it works in a dataloader's
    workers.

    Args:
        inner: Any data collator: rows to a batch.
        key: The rows' routing column. A row holds a vector (list, array or tensor), or for
            `gate="hard"` an int, the expert's id.

    Raises:
        TypeError: `inner` cannot be called.
    """

    def __init__(self, inner: Callable[[list[dict[str, Any]]], Any], key: str = KEYWORD) -> None:
        if not callable(inner):
            raise TypeError(
                f"inner={inner!r} must be a data collator, a callable from a list of rows to a "
                "batch: for instance transformers.default_data_collator"
            )
        self.inner = inner
        self.key = key

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> MutableMapping[str, Any]:
        """Collate rows, which stay as they are.

        Returns:
            What `inner` makes of the rows without their routing, with `routing_embeds`: float32
            [batch, routing_dim], or int64 [batch] where the rows hold ints. One for each row of
            the `input_ids` that `inner` makes.

        Raises:
            TypeError: A row is no mapping, its routing is not numeric, or `inner` returns no
                mapping.
            ValueError: The routing is missing from a row, is empty, not finite, or of another shape
                than the others'; `inner` packs several rows into one, or makes several of each in
                an order that cannot be told.
        """
        routing = stacked([self._routing(row, i) for i, row in enumerate(features)], self.key)
        batch = self.inner([_without(row, self.key) for row in features])
        if not isinstance(batch, MutableMapping):
            raise TypeError(
                f"inner={self.inner!r} returned a {type(batch).__name__}; RoutingCollator adds "
                f"{KEYWORD!r} to a dictionary: use a collator that returns one"
            )
        ids = batch.get("input_ids")
        if isinstance(ids, Tensor) and ids.shape[0] != len(features):
            routing = self._of_answers(routing, features, batch)
        batch[KEYWORD] = routing
        return batch

    def _of_answers(
        self, routing: Tensor, features: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]
    ) -> Tensor:
        """Return the routing of a batch that holds several answers to each row, one after another
        as TRL's preference trainers have them: all that were chosen, then all rejected ones.
        """
        rows, count = len(batch["input_ids"]), len(features)
        if rows < count or not any("chosen" in name for name in features[0]):
            raise ValueError(
                f"inner={self.inner!r} made {rows} rows of input_ids of {count} rows, but each row "
                "has a routing of its own: do not join rows "
                "(packing=False, padding_free=False, no DataCollatorWithFlattening)"
            )
        answers = _ANSWERS[: rows // count]
        if rows != len(answers) * count or not all(
            _holds(batch, part * count + i, row, answer)
            for part, answer in enumerate(answers)
            for i, row in enumerate(features)
        ):
            raise ValueError(
                f"inner={self.inner!r} made {rows} rows of input_ids of {count} pairs, and their "
                "order cannot be told, but both rows of a pair need its routing: use TRL's "
                "DataCollatorForPreference (first all prompt_ids + chosen_ids, then all prompt_ids "
                f"+ rejected_ids), or a collator that adds {KEYWORD!r} for every row itself"
            )
        return torch.cat([routing] * len(answers))

    def _routing(self, row: Mapping[str, Any], index: int) -> Any:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"row {index} is a {type(row).__name__}; RoutingCollator takes its routing off a "
                "dictionary: let the dataset return dictionaries"
            )
        if row.get(self.key) is None:
            raise ValueError(
                f"row {index} has no {self.key!r}, only {sorted(row)}. transformers' and TRL's "
                "trainers drop the columns that they do not know: pass remove_unused_columns=False,"
                " or put peft_ilora.RoutingColumns in front of the trainer's class. "
                "Packing (packing=True) drops them too, and has to be off"
            )
        return row[self.key]


def stacked(values: Sequence[Any], key: str) -> Tensor:
    """Return the routing of rows as one tensor.

    Args:
        values: The routing of each row: vectors, or ints.
        key: Name of the column, for errors.

    Returns:
        float32 [batch, routing_dim] of vectors, int64 [batch] of ints.

    Raises:
        TypeError: A value is not numeric.
        ValueError: There are no rows, their shapes differ, or one is no vector, NaN or infinite.
    """
    if not values:
        raise ValueError(f"there are no rows to take {key!r} from: pass one at least")
    rows = [_numeric(value, key, i) for i, value in enumerate(values)]
    shape = tuple(rows[0].shape)
    for i, row in enumerate(rows):
        if tuple(row.shape) != shape:
            raise ValueError(
                f"{key!r} of row {i} has shape {tuple(row.shape)}, but row 0 has {shape}: give "
                "every row a vector of routing_dim numbers, or for gate='hard' every row an int"
            )
    if shape == () and not any(row.is_floating_point() for row in rows):
        return torch.stack([row.long() for row in rows])
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(
            f"{key!r} of row 0 is {values[0]!r}, of shape {shape}: give every row a vector of "
            "routing_dim numbers, or for gate='hard' an int"
        )
    embeds = torch.stack([row.float() for row in rows])
    for i, finite in enumerate(torch.isfinite(embeds).all(dim=1).tolist()):
        if not finite:
            raise ValueError(
                f"{key!r} of row {i} holds NaN or infinity (as float32): {values[i]!r}. Drop the "
                "row, or give it a finite vector"
            )
    return embeds


def _holds(batch: Mapping[str, Any], index: int, row: Mapping[str, Any], answer: str) -> bool:
    """Whether one row of a batch is a prompt and its answer, perhaps cut off at one end."""
    if answer not in row:
        return False
    full = [*row.get("prompt_ids", ()), *row[answer]]
    mask = batch.get("attention_mask")
    ids = batch["input_ids"][index]
    found = (ids if mask is None else ids[mask[index].bool()]).tolist()
    return 0 < len(found) <= len(full) and found in (full[: len(found)], full[-len(found) :])


def _numeric(value: Any, key: str, index: int) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(_not_numeric(value, key, index)) from error
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(_not_numeric(value, key, index))
    return tensor


def _not_numeric(value: Any, key: str, index: int) -> str:
    return (
        f"{key!r} of row {index} is {value!r}, which is not numeric: give every row a vector of "
        "routing_dim numbers (list, array or tensor), or for gate='hard' an int"
    )


def _without(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}
