"""A loaded SALMONN behind the `ModelFamily` protocol."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from lalm.audio_input import AudioInput
from lalm.families.prompt_embeds import prompt_embeds
from lalm.families.salmonn.features import FBANK, SalmonnFeatures
from lalm.families.salmonn.hearing import Hearing
from lalm.families.salmonn.tokenizer import Tokenizer
from lalm.family import AudioFeatures
from lalm.head_gate import input_device
from lalm.head_mask import ModelIdentity

_PLACEHOLDER = "<SpeechHere>"
_BEFORE = "USER: <Speech>"
_AFTER = "</Speech> {instruction}\nASSISTANT:"


class SalmonnFamily:
    """A loaded SALMONN; `load_salmonn` makes it. See `lalm.family.ModelFamily` for the methods.

    Every clip, however short, takes the whole window of Whisper and the same number of tokens.
    """

    def __init__(
        self,
        llama: LlamaForCausalLM,
        hearing: Hearing,
        tokenizer: Tokenizer,
        features: SalmonnFeatures,
        identity: ModelIdentity,
    ) -> None:
        self.identity = identity
        self.audio_input = AudioInput(channel=0, joined=True)
        self.model: PreTrainedModel = llama
        self.decoder: PreTrainedModel = llama.model
        self.lm_head: nn.Module = llama.lm_head
        self.hearing = hearing
        self._tokenizer = tokenizer
        self.features = features
        self.max_audio_s = features.max_audio_s
        self.eos_token_ids = frozenset({tokenizer.eos_token_id})

    @property
    def device(self) -> torch.device:
        return input_device(self.decoder)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @torch.no_grad()
    def embed_audio(self, features: Sequence[AudioFeatures]) -> list[Tensor]:
        """See `ModelFamily`."""
        if not features:
            return []
        mel = torch.stack([clip.mel for clip in features]).to(self.hearing.device)
        fbanks = [clip.extra[FBANK].to(self.hearing.device) for clip in features]
        return list(self.hearing(mel, fbanks).to(self.device))

    def prompt_segments(self, instruction: str | None, num_audios: int) -> list[list[int]]:
        """See `ModelFamily`. The same template with and without instruction; BOS stands first.

        Raises:
            ValueError: more than one audio, or the instruction contains the placeholder.
        """
        if num_audios != 1:
            raise ValueError(f"SALMONN hears one audio, not {num_audios}; recordings are joined before")
        if instruction is not None and _PLACEHOLDER in instruction:
            raise ValueError(f"the instruction must not contain {_PLACEHOLDER}")
        after = _AFTER.format(instruction=instruction or "")
        tokenizer = self._tokenizer
        return [[tokenizer.bos_token_id, *tokenizer.encode(_BEFORE)], tokenizer.encode(after)]

    def embed_prompt(self, audio_embeds: Sequence[Tensor], instruction: str | None = None) -> Tensor:
        """See `ModelFamily`."""
        return prompt_embeds(self, audio_embeds, instruction)

    def encode_text(self, text: str) -> list[int]:
        """See `ModelFamily`."""
        return self._tokenizer.encode(text)

    def decode_tokens(self, ids: Sequence[int]) -> str:
        """See `ModelFamily`."""
        return self._tokenizer.decode(ids).strip()
