"""The model's part of a step: encode, prefill, decode.

The prompt of a row stands at positions 0 to num_prompt_tokens of its slot in the key-value cache, the answer
behind it. Each row is under its own head mask. The decoder runs in one of two ways with equal tokens: packed
(`packed.py`: on a CPU, small decoders) or padded (`padded.py`: everything else).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lalm.audio import SAMPLE_RATE_HZ
from lalm.family import AudioFeatures, ModelFamily
from lalm.head_mask import HeadMask
from service.inference.chunk import Chunk, ForwardPass
from service.inference.decode_graphs import Capture, DecodeGraphs
from service.inference.draft import Draft
from service.inference.greedy import finite, greedy
from service.inference.kv_cache import KvCache
from service.inference.label_scores import label_scores
from service.inference.packed import PackedPass
from service.inference.packed_check import can_pack
from service.inference.padded import PaddedPass
from service.inference.sequence import Sequence, Times

_NO_DRAFT = Draft((), ())
# Between requests the cache may keep this much memory on a CPU.
_IDLE_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PromptPart:
    """The next `num_tokens` positions of a sequence's prompt; audio: its encoded clips."""

    sequence: Sequence
    audio: list[Tensor]
    num_tokens: int


@dataclass(frozen=True)
class FirstTokens:
    """What a prefill says about a row: the tokens its answer begins with, none if the prompt goes on.

    scores: probability of each label, if asked for.
    """

    tokens: list[int]
    scores: dict[str, float] | None = None


class ModelRunner:
    """Runs one family's model over the rows of `max_slots` slots. One thread at a time.

    max_sequence_tokens: prompt and answer of one row; less if the decoder has fewer positions.
    packed: False to run padded even where the packed pass fits.
    capture: how the padded pass's decode steps are recorded at warm-up; None computes each anew.

    Raises:
        ValueError: the decoder has layers that its attention mask does not fit.
    """

    def __init__(
        self,
        family: ModelFamily,
        max_slots: int,
        max_sequence_tokens: int,
        *,
        packed: bool = True,
        capture: Capture | None = None,
    ) -> None:
        self._family = family
        self._max_slots = max_slots
        self.eos_token_ids: frozenset[int] = family.eos_token_ids
        self.packed: bool = packed and can_pack(family)
        self._capture = None if self.packed else capture
        num_spare = 0 if self._capture is None else 1  # see `decode_graphs.py`
        num_positions = getattr(family.decoder.config, "max_position_embeddings", max_sequence_tokens + 1)
        self._num_positions = min(max_sequence_tokens + num_spare, num_positions)
        self.max_sequence_tokens: int = self._num_positions - num_spare
        self._cache = KvCache(family.identity.num_layers, max_slots, self._num_positions)
        self._pass: ForwardPass
        self._graphs: DecodeGraphs | None = None
        if self.packed:
            self._pass = PackedPass(family.decoder, self._cache, self.max_sequence_tokens)
        else:
            self._pass = PaddedPass(family, self._cache, max_slots)
        self.takes_parts: bool = self._pass.takes_parts

    @property
    def replays_decode_steps(self) -> bool:
        """Whether decode steps were captured at warm-up."""
        return self._graphs is not None

    @torch.inference_mode()
    def warm_up(self, head_masks: Iterable[HeadMask] = ()) -> None:
        """One second of silence through every stage; on a GPU, all the memory the cache may need is taken.

        Decode steps are captured behind it. head_masks: those that most rows will come with.
        """
        self._pass.prepare(list(head_masks))
        if self._family.device.type == "cuda" or self._capture is not None:
            self._cache.reserve(self._max_slots, self._num_positions)
        features = self._family.features(np.zeros(SAMPLE_RATE_HZ, dtype=np.float32))
        audio = self.encode([features])
        num_tokens = sum(map(len, self._family.prompt_segments(None, 1))) + features.num_audio_tokens
        sequence = Sequence(-1, "warm-up", "warm-up", None, None, num_tokens, 2, Times(0.0), slot=0)
        (first,) = self.prefill([PromptPart(sequence, audio, num_tokens)])
        sequence.num_prefilled = num_tokens
        sequence.output_ids += first.tokens
        self.decode([sequence])
        if self._capture is not None and isinstance(self._pass, PaddedPass):
            self._cache.clear(0)
            graphs = DecodeGraphs(
                self._pass, self._next_tokens, self._max_slots, self._num_positions, self._family.device
            )
            self._graphs = graphs if graphs.record(self._capture) else None

    @torch.inference_mode()
    def encode(self, clips: list[AudioFeatures]) -> list[Tensor]:
        """The embeddings of each clip, [num_audio_tokens, hidden]."""
        embeds = self._family.embed_audio(clips)
        if self._family.device.type == "cuda":
            # so that the time is counted as the encoder's, not as the prefill's
            torch.cuda.synchronize(self._family.device)
        return embeds

    @torch.inference_mode()
    def prefill(self, parts: list[PromptPart]) -> list[FirstTokens]:
        """Run parts of prompts, each behind what is prefilled of it; a prompt that is complete has tokens.

        Raises:
            FloatingPointError: the logits of a row are not finite.
        """
        inputs, chunks = zip(*(self._chunk(part) for part in parts), strict=True)
        sequences = [part.sequence for part in parts]
        self._cache.reserve(
            max(chunk.slot for chunk in chunks) + 1,
            max(
                row.num_prompt_tokens + max(row.max_new_tokens, len(row.drafts.beginning or ()))
                for row in sequences
            ),
        )
        hidden = self._pass.prefill(inputs, chunks)
        if not len(hidden):
            return [FirstTokens([]) for _ in parts]
        logits = self._family.lm_head(hidden)
        likeliest = iter(finite(greedy(logits).tolist()))
        of_row = torch.split(logits, [chunk.num_outputs for chunk in chunks])
        return [
            self._first_tokens(sequence, chunk, list(islice(likeliest, chunk.num_outputs)), own)
            for sequence, chunk, own in zip(sequences, chunks, of_row, strict=True)
        ]

    def _chunk(self, part: PromptPart) -> tuple[Tensor, Chunk]:
        """A part of a prompt and, behind its end, the draft of the answer; and the input [length, hidden]."""
        sequence, start = part.sequence, part.sequence.num_prefilled
        stop = start + part.num_tokens
        inputs = self._family.embed_prompt(part.audio, sequence.instruction)[start:stop]
        if stop < sequence.num_prompt_tokens:
            return inputs, Chunk(_slot(sequence), start, len(inputs), sequence.head_mask, num_outputs=0)
        draft = sequence.drafts.beginning if self._pass.takes_trees else None
        if draft is None:
            return inputs, Chunk(_slot(sequence), start, len(inputs), sequence.head_mask)
        inputs = torch.cat([inputs, self._embed(draft.tokens)])
        return inputs, _drafted(sequence, start, len(inputs), draft)

    def _first_tokens(
        self, sequence: Sequence, chunk: Chunk, likeliest: list[int], logits: Tensor
    ) -> FirstTokens:
        """What the outputs of a chunk say."""
        draft = sequence.drafts.beginning
        if not chunk.parents or draft is None:
            return FirstTokens(likeliest)
        tokens = self._accepted(draft, likeliest, chunk.slot, sequence.num_prompt_tokens)
        if not sequence.with_scores or not draft.labels:
            return FirstTokens(tokens)
        return FirstTokens(tokens, label_scores(draft, logits, self.eos_token_ids))

    def _accepted(self, draft: Draft, likeliest: list[int], slot: int, start: int) -> list[int]:
        """The tokens that a draft at `start` of a slot gives; those of it stay there as if decoded."""
        nodes, tokens = draft.accept(likeliest)
        if nodes != list(range(len(nodes))):
            self._cache.move(slot, [start + node for node in nodes], start)
        return tokens

    @torch.inference_mode()
    def decode(self, sequences: list[Sequence]) -> list[list[int]]:
        """The next tokens of each running sequence, given in the order of their slots: one, or, where a
        continuation was guessed, more.

        Raises:
            FloatingPointError: the logits of a row are not finite.
        """
        drafts = [self._continuation(sequence) for sequence in sequences]
        if any(drafts):
            return self._decode_drafts(sequences, drafts)
        chunks = [Chunk(_slot(row), row.next_position, 1, row.head_mask) for row in sequences]
        latest = [row.output_ids[-1] for row in sequences]
        if self._graphs is not None:
            ids = self._graphs.decode(latest, chunks)
        else:
            ids = self._next_tokens(self._pass.decode(latest, chunks)).tolist()
        return [[token] for token in finite(ids)]

    def _continuation(self, sequence: Sequence) -> Draft | None:
        """What is guessed to follow a row's latest token, where the decoder can check that."""
        if not (self._pass.takes_parts and self._pass.takes_trees):
            return None
        draft = sequence.drafts.continuations.get(sequence.output_ids[-1])
        too_long = draft is not None and sequence.next_position + 1 + len(draft) > self.max_sequence_tokens
        return None if too_long else draft

    def _decode_drafts(self, sequences: list[Sequence], drafts: list[Draft | None]) -> list[list[int]]:
        """`decode` where some rows have a draft behind their latest token."""
        known = [draft or _NO_DRAFT for draft in drafts]
        chunks = [
            _drafted(row, row.next_position, 1 + len(draft), draft)
            for row, draft in zip(sequences, known, strict=True)
        ]
        self._cache.reserve(max(chunk.slot for chunk in chunks) + 1, max(chunk.stop for chunk in chunks))
        inputs = [
            self._embed([row.output_ids[-1], *draft.tokens])
            for row, draft in zip(sequences, known, strict=True)
        ]
        likeliest = iter(finite(self._next_tokens(self._pass.prefill(inputs, chunks)).tolist()))
        return [
            self._accepted(draft, list(islice(likeliest, chunk.num_outputs)), chunk.slot, chunk.start + 1)
            for draft, chunk in zip(known, chunks, strict=True)
        ]

    def _embed(self, token_ids: Iterable[int]) -> Tensor:
        """[number of tokens, hidden]."""
        ids = torch.tensor(list(token_ids), device=self._family.device)
        embeds: Tensor = self._family.decoder.get_input_embeddings()(ids)
        return embeds

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Forget what a failed sequence left in its slot."""
        self._cache.clear(slot)

    def recover(self) -> None:
        """A call has run out of memory: ask for no more than there is, and give back what is not in use."""
        self._cache.settle()
        if self._family.device.type == "cuda":
            torch.cuda.empty_cache()

    def rest(self) -> None:
        """Nothing is running: on a CPU, memory that a busy time needed is given back."""
        if (
            self._family.device.type != "cuda"
            and self._graphs is None
            and self._cache.num_bytes > _IDLE_CACHE_BYTES
        ):
            self._cache.release()

    def _next_tokens(self, hidden: Tensor) -> Tensor:
        """The likeliest token of each row of [batch, hidden]: see `greedy`."""
        return greedy(self._family.lm_head(hidden))


def _slot(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise ValueError(f"sequence {sequence.id} is in no slot")
    return sequence.slot


def _drafted(sequence: Sequence, start: int, length: int, draft: Draft) -> Chunk:
    """A chunk that ends in a draft, whose outputs are asked for, and the one before it."""
    return Chunk(_slot(sequence), start, length, sequence.head_mask, 1 + len(draft), tuple(draft.parents))
