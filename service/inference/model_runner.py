"""The model's part of a step: encode, prefill, decode. The only tensor code of the service.

The prompt of a row stands at positions 0 to num_prompt_tokens of its slot in the key-value cache, the answer
behind it. A prefill is padded on the right, where causality hides the padding from the row; a decode step
looks at every position up to the longest row's, and its attention mask hides what is not the row's own.
Each row is under its own gate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lalm.audio import SAMPLE_RATE_HZ
from lalm.family import AudioFeatures, ModelFamily
from lalm.head_gate import gate_tensor
from service.inference.kv_cache import Decode, KvCache, Prefill, select_rows
from service.inference.sequence import Sequence, Times

# Between requests the cache may keep this much memory on a CPU.
_IDLE_CACHE_BYTES = 256 * 2**20
_FULL, _SLIDING = "full_attention", "sliding_attention"


class ModelRunner:
    """Runs one family's model over the rows of `max_slots` slots. One thread at a time.

    max_sequence_tokens: prompt and answer of one row; less if the decoder has fewer positions.

    Raises:
        ValueError: the decoder has layers that this attention mask does not fit.
    """

    def __init__(self, family: ModelFamily, max_slots: int, max_sequence_tokens: int) -> None:
        self._family = family
        self._num_layers = family.identity.num_layers
        self._num_heads = family.identity.num_heads
        self._max_slots = max_slots
        num_positions = getattr(family.decoder.config, "max_position_embeddings", max_sequence_tokens)
        self.max_sequence_tokens: int = min(max_sequence_tokens, num_positions)
        self._cache = KvCache(self._num_layers, max_slots, self.max_sequence_tokens)
        self._gates = torch.ones(
            self._num_layers, max_slots, self._num_heads, device=family.device, dtype=family.dtype
        )
        self._layer_types, self._window = _attention_layers(family.decoder.config)

    def warm_up(self) -> None:
        """One second of silence through every stage; on a GPU, all the memory the cache may need is taken."""
        if self._family.device.type == "cuda":
            self._cache.reserve(self._max_slots, self.max_sequence_tokens)
        features = self._family.features(np.zeros(SAMPLE_RATE_HZ, dtype=np.float32))
        (audio,) = self.encode([[features]])
        num_tokens = sum(map(len, self._family.prompt_segments(None, 1))) + features.num_audio_tokens
        sequence = Sequence(-1, "warm-up", "warm-up", None, None, num_tokens, 2, Times(0.0), slot=0)
        sequence.output_ids += self.prefill([(sequence, audio)])
        self.decode([sequence])

    @torch.inference_mode()
    def encode(self, requests: list[list[AudioFeatures]]) -> list[list[Tensor]]:
        """The audio of several requests in one pass of the encoder.

        Returns for each request its clips' embeddings, each [num_audio_tokens, hidden].
        """
        embeds = iter(self._family.embed_audio([clip for clips in requests for clip in clips]))
        if self._family.device.type == "cuda":
            # so that the time is counted as the encoder's, not as the prefill's
            torch.cuda.synchronize(self._family.device)
        return [[next(embeds) for _ in clips] for clips in requests]

    @torch.inference_mode()
    def prefill(self, rows: list[tuple[Sequence, list[Tensor]]]) -> list[int]:
        """Start sequences, given with their audio embeddings, in their slots; returns each one's first token.

        Raises:
            FloatingPointError: the logits of a row are not finite.
        """
        device, sequences = self._family.device, [sequence for sequence, _ in rows]
        slots = [_slot(sequence) for sequence in sequences]
        self._cache.reserve(
            max(slots) + 1,
            max(sequence.num_prompt_tokens + sequence.max_new_tokens for sequence in sequences),
        )
        gate = gate_tensor(
            [sequence.head_mask for sequence in sequences],
            self._num_layers,
            self._num_heads,
            device=device,
            dtype=self._family.dtype,
        )
        self._gates[:, slots] = gate
        embeds = [self._family.embed_prompt(audio, sequence.instruction) for sequence, audio in rows]
        padded = pad_sequence(embeds, batch_first=True)
        positions = torch.arange(padded.shape[1], device=device).expand(len(rows), -1)
        hidden = self._forward(positions, gate, self._cache.prefill(slots, device), inputs_embeds=padded)
        last = torch.tensor([len(prompt) - 1 for prompt in embeds], device=device)
        return self._greedy(hidden[torch.arange(len(rows), device=device), last])

    @torch.inference_mode()
    def decode(self, sequences: list[Sequence]) -> list[int]:
        """The next token of each running sequence, given in the order of their slots.

        Raises:
            FloatingPointError: the logits of a row are not finite.
        """
        slots = [_slot(sequence) for sequence in sequences]
        latest = [sequence.output_ids[-1] for sequence in sequences]
        lengths = [sequence.num_prompt_tokens + len(sequence.output_ids) for sequence in sequences]
        input_ids, positions, index = torch.tensor(
            [latest, [length - 1 for length in lengths], slots], device=self._family.device
        )
        rows = select_rows(slots, index)
        cache = self._cache.decode(index, rows, positions, max(lengths))
        hidden = self._forward(
            positions[:, None],
            self._gates[:, rows],
            cache,
            input_ids=input_ids[:, None],
            num_keys=max(lengths),
        )
        return self._greedy(hidden[:, -1])

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Forget what a failed sequence left in its slot."""
        self._cache.clear(slot)

    def rest(self) -> None:
        """Nothing is running: on a CPU, memory that a busy time needed is given back."""
        if self._family.device.type != "cuda" and self._cache.num_bytes > _IDLE_CACHE_BYTES:
            self._cache.release()

    def _forward(
        self,
        positions: Tensor,
        gate: Tensor,
        cache: Prefill | Decode,
        *,
        num_keys: int | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Last hidden states [batch, num_queries, hidden]; positions: int [batch, num_queries]."""
        output = self._family.decoder(
            **inputs,
            attention_mask=self._attention_mask(positions, num_keys or positions.shape[1]),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            head_gate=gate,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _attention_mask(self, positions: Tensor, num_keys: int) -> Tensor | dict[str, Tensor]:
        """Which keys a query sees, bool [batch, 1, num_queries, num_keys]: its own position and those before.

        A decoder that mixes full and sliding layers takes one a type.
        """
        keys = torch.arange(num_keys, device=positions.device)
        queries = positions[:, None, :, None]
        visible = keys <= queries
        if self._window is None:
            return visible
        near = visible & (keys > queries - self._window)
        return {_FULL: visible, _SLIDING: near} if self._layer_types else near

    def _greedy(self, hidden: Tensor) -> list[int]:
        """The likeliest token of each row of [batch, hidden]; the only transfer to the host of a step."""
        logits = self._family.lm_head(hidden)
        ids: list[int] = torch.where(logits.amax(-1).isfinite(), logits.argmax(-1), -1).tolist()
        if min(ids) < 0:
            rows = [row for row, token in enumerate(ids) if token < 0]
            raise FloatingPointError(f"the logits of rows {rows} of {len(ids)} are not finite")
        return ids


def _attention_layers(config: Any) -> tuple[set[str], int | None]:
    """Types of layers that a decoder tells apart (none if its layers are alike), and its sliding window.

    Raises:
        ValueError: a type of layer that a decode step cannot mask.
    """
    layer_types = set(getattr(config, "layer_types", None) or ())
    if unknown := layer_types - {_FULL, _SLIDING}:
        raise ValueError(f"the decoder has layers of types {sorted(unknown)}, which are not supported")
    if layer_types == {_FULL}:
        return set(), None
    return layer_types, getattr(config, "sliding_window", None)


def _slot(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise ValueError(f"sequence {sequence.id} is in no slot")
    return sequence.slot
