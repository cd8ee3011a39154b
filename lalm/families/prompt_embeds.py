"""The decoder's input of a prompt: texts and audios in turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from lalm.family import ModelFamily


@torch.no_grad()
def prompt_embeds(family: ModelFamily, audio_embeds: Sequence[Tensor], instruction: str | None) -> Tensor:
    """What `ModelFamily.embed_prompt` promises, by the family's `prompt_segments`: [prompt_len, hidden].

    audio_embeds: one [num_audio_tokens, hidden] an audio.

    Raises:
        ValueError: as `prompt_segments`.
    """
    embed_tokens = family.decoder.get_input_embeddings()
    parts: list[Tensor] = []
    for ids, audio in zip_longest(family.prompt_segments(instruction, len(audio_embeds)), audio_embeds):
        parts.append(embed_tokens(torch.tensor(ids, dtype=torch.long, device=family.device)))
        if audio is not None:
            parts.append(audio.to(device=family.device, dtype=family.dtype))
    return torch.cat(parts)
