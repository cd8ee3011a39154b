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
from service.inference.kv_cache import KvCache
from service.inference.label_scores import label_scores
from service.inference.packed import PackedPass
from service.inference.packed_check import can_pack
from service.inference.padded import PaddedPass
from service.inference.sequence import Sequence, Times

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
            max(row.num_prompt_tokens + max(row.max_new_tokens, len(row.draft or ())) for row in sequences),
        )
        hidden = self._pass.prefill(inputs, chunks)
        if not len(hidden):
            return [FirstTokens([]) for _ in parts]
        logits = self._family.lm_head(hidden)
        likeliest = iter(_finite(greedy(logits).tolist()))
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
        draft = sequence.draft if self._pass.takes_trees else None
        if draft is None:
            return inputs, Chunk(_slot(sequence), start, len(inputs), sequence.head_mask)
        embed_tokens = self._family.decoder.get_input_embeddings()
        inputs = torch.cat([inputs, embed_tokens(torch.tensor(draft.tokens, device=inputs.device))])
        chunk = Chunk(
            _slot(sequence), start, len(inputs), sequence.head_mask, 1 + len(draft), tuple(draft.parents)
        )
        return inputs, chunk

    def _first_tokens(
        self, sequence: Sequence, chunk: Chunk, likeliest: list[int], logits: Tensor
    ) -> FirstTokens:
        """What the outputs of a chunk say; accepted tokens of the draft stay in the cache as if decoded."""
        if not chunk.parents or sequence.draft is None:
            return FirstTokens(likeliest)
        nodes, tokens = sequence.draft.accept(likeliest)
        if nodes != list(range(len(nodes))):
            behind_prompt = sequence.num_prompt_tokens
            self._cache.move(chunk.slot, [behind_prompt + node for node in nodes], behind_prompt)
        if not sequence.with_scores or not sequence.draft.labels:
            return FirstTokens(tokens)
        return FirstTokens(tokens, label_scores(sequence.draft, logits, self.eos_token_ids))

    @torch.inference_mode()
    def decode(self, sequences: list[Sequence]) -> list[int]:
        """The next token of each running sequence, given in the order of their slots.

        Raises:
            FloatingPointError: the logits of a row are not finite.
        """
        chunks = [
            Chunk(
                _slot(sequence),
                sequence.num_prompt_tokens + len(sequence.output_ids) - 1,
                1,
                sequence.head_mask,
            )
            for sequence in sequences
        ]
        latest = [sequence.output_ids[-1] for sequence in sequences]
        if self._graphs is not None:
            return _finite(self._graphs.decode(latest, chunks))
        return _finite(self._next_tokens(self._pass.decode(latest, chunks)).tolist())

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


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row of [batch, vocab_size], -1 where logits are not finite: int64 [batch].

    Its transfer to the host is the only one of a step.
    """
    return torch.where(logits.amax(-1).isfinite(), logits.argmax(-1), -1)


def _finite(ids: list[int]) -> list[int]:
    """The tokens themselves.

    Raises:
        FloatingPointError: one of them is none.
    """
    if min(ids) < 0:
        rows = [row for row, token in enumerate(ids) if token < 0]
        raise FloatingPointError(f"the logits of rows {rows} of {len(ids)} are not finite")
    return ids


def _slot(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise ValueError(f"sequence {sequence.id} is in no slot")
    return sequence.slot
