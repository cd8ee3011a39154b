"""Answers that are guessed before they are generated, so that one pass checks what else takes many.

A task with a form says how its answers begin: one of its labels, `{"transcript": "`, or `{"gender": "`, a
label, and so on to the first value that may be anything. These beginnings, as a tree of tokens, stand
behind the prompt in the prefill, each token seeing the prompt and those it follows. The pass gives the
likeliest token after each of them, and so the greedy answer as far as the tree goes: it is followed while
the likeliest token is in the tree. What comes out is what generating token by token gives; a wrong guess
costs a few positions of one pass. A label that ends the answer needs no decode step at all, and the
probability of every label is known.

What is fixed in the middle of an answer is guessed too, once its first token is there: behind `",` comes
` "gender": "`, a gender, and the end.

Source: speculative decoding with greedy verification (Leviathan et al., arXiv 2211.17192) over a token tree
(SpecInfer, arXiv 2305.09781).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from lalm.task import OutputKind, OutputSpec

# A larger tree would cost more than it saves; if scores are asked for, there is no other way to them.
MAX_DRAFT_TOKENS = 64
MAX_SCORED_TOKENS = 1024
MAX_CONTINUATION_TOKENS = 24
MIN_CONTINUATION_DEPTH = 3  # a step with a draft takes as long as two without


@dataclass(frozen=True)
class Draft:
    """A tree of tokens behind a prompt, parents before their children.

    tokens: the token of each node. parents: the node before it, -1 where it follows the prompt.
    labels: where a label task's labels end, by label; empty for other tasks.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    labels: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of_texts(cls, texts: Iterable[list[int]], labels: Sequence[str] = ()) -> Self:
        """The tree of some token sequences, none of them empty; `labels` names them."""
        nodes: dict[tuple[int, int], int] = {}
        ends = []
        for ids in texts:
            node = -1
            for token in ids:
                node = nodes.setdefault((node, token), len(nodes))
            ends.append(node)
        parents, tokens = zip(*nodes, strict=True)
        return cls(tokens, parents, dict(zip(labels, ends, strict=True) if labels else ()))

    def path(self, node: int) -> list[int]:
        """The nodes from the prompt to `node`, itself included."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def accept(self, likeliest: Sequence[int]) -> tuple[list[int], list[int]]:
        """The greedy answer as far as the tree knows it.

        likeliest: the token that follows the prompt, then the one that follows each node.
        Returns the nodes that the answer goes through, and its tokens: those of the nodes and one more.
        """
        children = {place: node for node, place in enumerate(zip(self.parents, self.tokens, strict=True))}
        node, nodes, tokens = -1, [], [likeliest[0]]
        while (child := children.get((node, tokens[-1]))) is not None:
            node = child
            nodes.append(node)
            tokens.append(likeliest[1 + node])
        return nodes, tokens


@dataclass(frozen=True)
class AnswerDrafts:
    """What is known of the answers of a form.

    beginning: how they begin. continuations: by a token that follows a value that may be anything, what comes
    behind it.
    """

    beginning: Draft | None = None
    continuations: Mapping[int, Draft] = field(default_factory=dict)


class Drafts:
    """The drafts of forms, each made once: forms come with the head masks, not with the requests."""

    def __init__(self, encode_text: Callable[[str], list[int]]) -> None:
        self._encode_text = encode_text
        self._made: dict[tuple[OutputSpec, int], AnswerDrafts] = {}

    def of(self, output: OutputSpec | None, max_tokens: int) -> AnswerDrafts:
        """What is known of answers of this form; no beginning of more than `max_tokens`."""
        if output is None:
            return AnswerDrafts()
        form = output, max_tokens
        if form not in self._made:
            self._made[form] = AnswerDrafts(
                draft_of(output, self._encode_text, max_tokens), continuations_of(output, self._encode_text)
            )
        return self._made[form]


def draft_of(
    output: OutputSpec | None, encode_text: Callable[[str], list[int]], max_tokens: int = MAX_DRAFT_TOKENS
) -> Draft | None:
    """How answers of this form begin, as far as that is known and the tree is not too large; None if nowhere.

    encode_text: token ids of a text; that a model spells its answers in this way is likely, not needed.
    """
    for beginnings in reversed(_known(output, 0, max_tokens) if output is not None else []):
        texts = [encode_text(text) for text in beginnings]
        if not all(texts):
            continue
        is_label = output is not None and output.kind is OutputKind.LABEL
        draft = Draft.of_texts(texts, beginnings if is_label else ())
        if len(draft) <= max_tokens:
            return draft
    return None


def continuations_of(
    output: OutputSpec, encode_text: Callable[[str], list[int]], max_tokens: int = MAX_CONTINUATION_TOKENS
) -> dict[int, Draft]:
    """What follows the values that may be anything, by the first of its tokens, as far as `draft_of` goes."""
    if output.kind is OutputKind.LABEL:
        return {}
    by_first: dict[int, list[list[int]]] = {}
    for number, field_ in enumerate(output.result_fields, start=1):
        if field_.labels is not None:
            continue
        for texts in reversed(_known(output, number, max_tokens)):
            spelled = [encode_text(text) for text in texts]
            if sum(map(len, spelled)) <= max_tokens:  # and the tree of them has no more
                for first, *rest in filter(None, spelled):
                    by_first.setdefault(first, []).append(rest)
                break
    return {
        first: Draft.of_texts(filter(None, texts))
        for first, texts in by_first.items()
        if max(map(len, texts)) >= MIN_CONTINUATION_DEPTH
    }


def _known(output: OutputSpec, start: int, max_texts: int) -> list[list[str]]:
    """All that may stand before the field of index `start`: up to its value, then through one more value with
    labels each, up to the first value that may be anything, or the end, or more than `max_texts`.
    """
    if output.kind is OutputKind.TEXT:
        return []
    names = [field_.name for field_ in output.result_fields]
    if output.kind is OutputKind.JSON:
        literals = ['{"' + names[0] + '": "', *(f'", "{name}": "' for name in names[1:]), '"}']
    else:
        literals = ["", *(f" {output.separator} " for _ in names[1:]), ""]
    found = [literals[start : start + 1]]
    for field_, literal in zip(output.result_fields[start:], literals[start + 1 :], strict=True):
        if field_.labels is None or len(found[-1]) * len(field_.labels) > max_texts:
            break
        values = [_spelled(label, output.kind) + literal for label in field_.labels]
        found.append([text + value for text in found[-1] for value in values])
    # The space before a word is a part of the word's token.
    return [[text.rstrip() for text in texts] for texts in found]


def _spelled(label: str, kind: OutputKind) -> str:
    return json.dumps(label, ensure_ascii=False)[1:-1] if kind is OutputKind.JSON else label
