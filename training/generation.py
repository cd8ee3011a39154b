"""Answers by plain Hugging Face generate: the reference that the service is measured against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lalm.family import ModelFamily
from lalm.head_gate import gate_tensor, gating
from lalm.head_mask import HeadMask
from training.batches import AudioEmbeddings


def answers_of(
    family: ModelFamily,
    audio: AudioEmbeddings,
    *,
    head_mask: HeadMask | None,
    instruction: str | None,
    max_new_tokens: int,
    num_beams: int = 1,
    batch_size: int = 16,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """The answer to every recording of `audio`, under one head mask or none, with one instruction or none.

    `on_done` is told after each batch how many answers it made.
    """
    lengths = [audio.num_tokens(index) for index in range(len(audio))]
    answers = [""] * len(audio)
    for indices in by_equal_length(lengths, batch_size):
        with torch.no_grad():
            prompts = [family.embed_prompt(embeds, instruction) for embeds in audio.get(indices)]
        generated = generate(
            family, prompts, head_mask=head_mask, max_new_tokens=max_new_tokens, num_beams=num_beams
        )
        for index, ids in zip(indices, generated, strict=True):
            answers[index] = family.decode_tokens(ids)
        on_done(len(indices))
    return answers


@torch.no_grad()
def generate(
    family: ModelFamily,
    prompts: list[Tensor],
    *,
    head_mask: HeadMask | None,
    max_new_tokens: int,
    num_beams: int = 1,
) -> list[list[int]]:
    """Token ids after each prompt [prompt_len, hidden], up to its end token; no sampling.

    Whatever a checkpoint's own generation settings say (sampling, penalties) is switched off.
    """
    inputs_embeds, attention_mask = left_padded(prompts)
    gate = None
    if head_mask is not None:
        shape = (family.identity.num_layers, family.identity.num_heads)
        gate = gate_tensor([head_mask] * len(prompts), *shape, family.device, family.dtype)
    ends = sorted(family.eos_token_ids)
    with gating(family.decoder, gate):
        output = family.model.generate(  # type: ignore[operator]
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            eos_token_id=ends,
            pad_token_id=ends[0],
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            length_penalty=1.0,
            no_repeat_ngram_size=0,
        )
    return [_until_end(ids, family.eos_token_ids) for ids in output.tolist()]


def by_equal_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All indices in batches, of one length where a length is frequent enough.

    Without padding attention needs no mask, which is faster by more than what smaller batches cost.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        alike[length].append(index)
    batches, rest = [], []
    for length in sorted(alike):
        indices = alike[length]
        if len(indices) < batch_size // 2:
            rest += indices
        else:
            batches += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return batches + [rest[start : start + batch_size] for start in range(0, len(rest), batch_size)]


def left_padded(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts [prompt_len, hidden] as [batch, longest, hidden], and their attention mask [batch, longest]."""
    longest = max(len(prompt) for prompt in prompts)
    inputs_embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[-1])
    attention_mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=prompts[0].device)
    for row, prompt in enumerate(prompts):
        inputs_embeds[row, longest - len(prompt) :] = prompt
        attention_mask[row, longest - len(prompt) :] = 1
    return inputs_embeds, attention_mask


def _until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    return ids[: next((position for position, token in enumerate(ids) if token in ends), len(ids))]
