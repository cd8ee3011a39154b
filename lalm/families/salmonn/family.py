"""A loaded SALMONN behind the `ModelFamily` protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, WhisperFeatureExtractor

from lalm.audio import SAMPLE_RATE_HZ
from lalm.audio_input import AudioInput
from lalm.errors import EmptyAudioError
from lalm.families.salmonn.fbank import LogMelFbank
from lalm.families.salmonn.hearing import Hearing
from lalm.families.salmonn.tokenizer import Tokenizer
from lalm.family import AudioFeatures
from lalm.head_mask import ModelIdentity

MIN_SAMPLES = SAMPLE_RATE_HZ  # a shorter clip gets silence up to 1 s
FBANK = "fbank"

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
        extractor: WhisperFeatureExtractor,
        identity: ModelIdentity,
    ) -> None:
        self.identity = identity
        self.audio_input = AudioInput(channel=0, joined=True)
        self.model: PreTrainedModel = llama
        self.decoder: PreTrainedModel = llama.model
        self.lm_head: nn.Module = llama.lm_head
        self.hearing = hearing
        self._tokenizer = tokenizer
        self._extractor = extractor
        self._fbank = LogMelFbank()
        self.max_audio_s: float = extractor.n_samples / SAMPLE_RATE_HZ
        self.eos_token_ids = frozenset({tokenizer.eos_token_id})

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def features(self, waveform: NDArray[np.float32]) -> AudioFeatures:
        """See `ModelFamily`. A clip under 1 s is treated as one of 1 s that ends in silence.

        Raises:
            EmptyAudioError: no samples.
        """
        if waveform.size == 0:
            raise EmptyAudioError("the audio has no samples")
        clip = waveform[: self._extractor.n_samples]
        clip = np.pad(clip, (0, max(0, MIN_SAMPLES - clip.size)))
        mel = self._extractor(clip, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features[0]
        num_frames = -(-clip.size // self._extractor.hop_length)
        return AudioFeatures(mel, num_frames, self.hearing.num_tokens, {FBANK: self._fbank(clip)})

    @torch.no_grad()
    def embed_audio(self, features: Sequence[AudioFeatures]) -> list[Tensor]:
        """See `ModelFamily`."""
        if not features:
            return []
        mel = torch.stack([clip.mel for clip in features]).to(self.device)
        fbanks = [clip.extra[FBANK].to(self.device) for clip in features]
        return list(self.hearing(mel, fbanks))

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

    @torch.no_grad()
    def embed_prompt(self, audio_embeds: Sequence[Tensor], instruction: str | None = None) -> Tensor:
        """See `ModelFamily`."""
        before, after = (
            torch.tensor(ids, device=self.device)
            for ids in self.prompt_segments(instruction, len(audio_embeds))
        )
        embed_tokens = self.decoder.get_input_embeddings()
        return torch.cat([embed_tokens(before), audio_embeds[0].to(self.device), embed_tokens(after)])

    def encode_text(self, text: str) -> list[int]:
        """See `ModelFamily`."""
        return self._tokenizer.encode(text)

    def decode_tokens(self, ids: Sequence[int]) -> str:
        """See `ModelFamily`."""
        return self._tokenizer.decode(ids).strip()
