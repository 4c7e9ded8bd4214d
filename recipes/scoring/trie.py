"""Constrained decoding: after what is written, only tokens that lead to one of the answers."""

from collections.abc import Iterable, Sequence

Node = dict[int, "Node"]
"""Next token -> what may follow it; empty after an answer's last token."""


def trie(answers: Iterable[Sequence[int]]) -> Node:
    """All beginnings of some answers, given as token ids that end with the same token."""
    root: Node = {}
    for answer in answers:
        node = root
        for token in answer:
            node = node.setdefault(token, {})
    return root


def next_tokens(root: Node, written: Iterable[int]) -> list[int]:
    """The tokens that may follow `written`; empty after an answer, and after what begins none."""
    node = root
    for token in written:
        node = node.get(token, {})
    return list(node)
