"""Decode steps on random prompts: of the service's model runner, and of transformers generate."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from benchmarks.timing import seconds
from lalm.family import ModelFamily
from lalm.head_mask import HeadMask
from service.inference.decode_graphs import Capture
from service.inference.model_runner import ModelRunner, PromptPart
from service.inference.sequence import Sequence as EngineSequence
from service.inference.sequence import Times

_WARM_UP_POSITIONS = 64  # more than a second of audio and the markers around it


class DecodeBatch:
    """Rows of the service that are prefilled and decode as long as they are told.

    head_masks: one a row. prompt_tokens: audio positions of each row. max_steps: decode steps at most.
    packed: False to compute silenced heads too, where the service would not. capture: how its steps are
    recorded, None to compute each.
    """

    def __init__(
        self,
        family: ModelFamily,
        head_masks: Sequence[HeadMask | None],
        prompt_tokens: int,
        max_steps: int,
        *,
        packed: bool = True,
        capture: Capture | None = None,
    ) -> None:
        markers = sum(map(len, family.prompt_segments(None, 1)))
        length = prompt_tokens + markers
        room = max(length + max_steps + 2, _WARM_UP_POSITIONS)
        self._runner = ModelRunner(family, len(head_masks), room, packed=packed, capture=capture)
        if capture is not None:
            self._runner.warm_up()
        self.is_captured: bool = self._runner.replays_decode_steps
        self._rows = [
            EngineSequence(
                row, "bench", "bench", head_mask, None, length, max_steps + 1, Times(0.0), slot=row
            )
            for row, head_mask in enumerate(head_masks)
        ]
        for row in self._rows:
            audio = random_embeddings(family, prompt_tokens, seed=row.id)
            (first,) = self._runner.prefill([PromptPart(row, [audio], length)])
            row.num_prefilled = length
            row.output_ids += first.tokens[:1]

    def steps(self, count: int) -> None:
        """Decode `count` tokens of every row."""
        for _ in range(count):
            for row, tokens in zip(self._rows, self._runner.decode(self._rows), strict=True):
                row.output_ids += tokens


def generate_step_s(family: ModelFamily, batch: int, prompt_tokens: int, steps: int, rounds: int) -> float:
    """Seconds of a decode step of transformers generate: a long answer less a short one."""
    embeds = torch.stack([random_embeddings(family, prompt_tokens, seed) for seed in range(batch)])
    attention_mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=family.device)

    def generate(num_tokens: int) -> float:
        def call() -> None:
            family.model.generate(  # type: ignore[operator]
                inputs_embeds=embeds,
                attention_mask=attention_mask,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                do_sample=False,
            )

        return seconds(call, family.device)

    generate(2)
    return median((generate(2 + steps) - generate(2)) / steps for _ in range(rounds))


def weight_bytes_per_step(family: ModelFamily) -> int:
    """Bytes of the weights that every decode step reads: the decoder's less its embeddings, and lm_head's."""
    embedding = family.decoder.get_input_embeddings().weight
    decoder = sum(weight.nbytes for weight in family.decoder.parameters() if weight is not embedding)
    return decoder + sum(weight.nbytes for weight in family.lm_head.parameters())


def random_embeddings(family: ModelFamily, num_tokens: int, seed: int) -> Tensor:
    """Audio embeddings [num_tokens, hidden] out of nothing."""
    generator = torch.Generator().manual_seed(seed)
    hidden_size = family.decoder.config.hidden_size
    return (0.02 * torch.randn(num_tokens, hidden_size, generator=generator)).to(family.device, family.dtype)
