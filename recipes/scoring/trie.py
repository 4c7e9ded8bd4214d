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


def without(root: Node, answers: Iterable[Sequence[int]]) -> Node:
    """A trie without some of its answers. The given one, which others may share, stays as it is."""
    for answer in answers:
        root = _without(root, answer)
    return root


def _without(node: Node, answer: Sequence[int]) -> Node:
    token, rest = answer[0], answer[1:]
    if token not in node:
        return node
    left = dict(node)
    child = _without(node[token], rest) if rest else {}
    if child:
        left[token] = child
    else:
        del left[token]
    return left


def next_tokens(root: Node, written: Iterable[int]) -> list[int]:
    """The tokens that may follow `written`; empty after an answer, and after what begins none."""
    node = root
    for token in written:
        node = node.get(token, {})
    return list(node)


def is_answer(root: Node, written: Sequence[int]) -> bool:
    """Whether `written` is a whole answer."""
    node = root
    for token in written:
        if token not in node:
            return False
        node = node[token]
    return bool(written) and not node
