"""The audio language models that transformers has: one family for all, by their public methods.

    get_audio_features     encoder and projector
    get_decoder            the language model, which the head gate goes into
    get_output_embeddings  the language model's head

What differs between them stands in `lalm.families.hf_models`. A clip is heard over one window of 30 s at
most, also where a model takes longer recordings in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from lalm.audio import SAMPLE_RATE_HZ
from lalm.audio_input import AudioInput
from lalm.errors import EmptyAudioError
from lalm.families.end_of_text import eos_token_ids
from lalm.families.hf_features import WINDOW_S
from lalm.families.hf_models import HfModel
from lalm.families.hf_prompts import ChatTokens
from lalm.families.prompt_embeds import prompt_embeds
from lalm.family import AudioFeatures
from lalm.head_gate import input_device
from lalm.head_mask import ModelIdentity

MIN_SAMPLES = SAMPLE_RATE_HZ // 10  # a shorter clip gets silence up to 100 ms


class HfFamily:
    """A loaded model of transformers; `load_hf` makes it. See `lalm.family.ModelFamily` for the methods."""

    def __init__(
        self, kind: HfModel, model: Any, extractor: Any, tokens: ChatTokens, identity: ModelIdentity
    ) -> None:
        self.identity = identity
        self.model: PreTrainedModel = model
        self.decoder: PreTrainedModel = model.get_decoder()
        self.lm_head: nn.Module = model.get_output_embeddings()
        self.max_audio_s: float = min(float(WINDOW_S), float(extractor.chunk_length))
        self.audio_input = AudioInput()
        configs = (model.generation_config, model.config, model.config.get_text_config())
        self.eos_token_ids = eos_token_ids(tokens.tokenizer, configs)
        decoder = {id(weight) for part in (self.decoder, self.lm_head) for weight in part.parameters()}
        self._encoder_weight = next(weight for weight in model.parameters() if id(weight) not in decoder)
        self._kind = kind
        self._extractor = extractor
        self._tokens = tokens

    @property
    def device(self) -> torch.device:
        return input_device(self.decoder)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def features(self, waveform: NDArray[np.float32]) -> AudioFeatures:
        """See `ModelFamily`. A clip under 100 ms is treated as one of 100 ms that ends in silence.

        Raises:
            EmptyAudioError: no samples.
        """
        if waveform.size == 0:
            raise EmptyAudioError("the audio has no samples")
        waveform = waveform[: int(self.max_audio_s * SAMPLE_RATE_HZ)]
        waveform = np.pad(waveform, (0, max(0, MIN_SAMPLES - waveform.size)))
        mel, num_frames = self._kind.mel(self._extractor, waveform)
        return AudioFeatures(mel, num_frames, self._kind.num_tokens(num_frames, self.model.config))

    @torch.no_grad()
    def embed_audio(self, features: Sequence[AudioFeatures]) -> list[Tensor]:
        """See `ModelFamily`. Clips are encoded together only where they cannot meet."""
        if not self._kind.one_pass:
            return [self._encode([clip]) for clip in features]
        if not features:
            return []
        return list(torch.split(self._encode(features), [clip.num_audio_tokens for clip in features]))

    def _encode(self, clips: Sequence[AudioFeatures]) -> Tensor:
        """[num_audio_tokens of all clips, hidden]; the clips have features of one width."""
        device = self._encoder_weight.device
        mel = torch.stack([clip.mel for clip in clips]).to(device=device, dtype=self.dtype)
        inputs = {"input_features": mel}
        if self._kind.mask_name is not None:
            num_frames = torch.tensor([clip.num_frames for clip in clips], device=device)
            is_clip = torch.arange(mel.shape[-1], device=device) < num_frames[:, None]
            inputs[self._kind.mask_name] = is_clip.long()
        output = self.model.get_audio_features(**inputs, return_dict=True)  # type: ignore[operator]
        embeds: Tensor = output.pooler_output.flatten(0, -2)
        if len(embeds) != (expected := sum(clip.num_audio_tokens for clip in clips)):
            raise RuntimeError(f"the encoder gave {len(embeds)} audio tokens, not {expected}")
        return embeds.to(self.device)

    def prompt_segments(self, instruction: str | None, num_audios: int) -> list[list[int]]:
        """See `ModelFamily`; for audio alone it is the chat template's user turn without a text."""
        audio_token = self._tokens.audio_token
        if audio_token in (instruction or ""):
            raise ValueError(f"the instruction must not contain {audio_token}")
        segments = self._kind.prompt(self._tokens, instruction, num_audios).split(audio_token)
        if len(segments) == 2:  # templates that write one placeholder for all audios of a turn
            segments[1:1] = [""] * (num_audios - 1)
        if len(segments) != num_audios + 1:
            raise ValueError(f"the chat template has {len(segments) - 1} places for {num_audios} audios")
        return [self.encode_text(segment) for segment in segments]

    def embed_prompt(self, audio_embeds: Sequence[Tensor], instruction: str | None = None) -> Tensor:
        """See `ModelFamily`."""
        return prompt_embeds(self, audio_embeds, instruction)

    def encode_text(self, text: str) -> list[int]:
        """See `ModelFamily`. The backend tokenizer: fast, and safe from any thread."""
        return list(self._tokens.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def decode_tokens(self, ids: Sequence[int]) -> str:
        """See `ModelFamily`."""
        text: str = self._tokens.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()
