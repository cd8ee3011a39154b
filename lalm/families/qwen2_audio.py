"""Qwen2-Audio: `Qwen/Qwen2-Audio-7B`, `-Instruct`, and every checkpoint of that layout and any size.

transformers' own encoder pads each clip to 30 s. Here it runs over the frames that exist, with equal results:

- the two convolutions together read at most two frames beyond the clip: the margin;
- log-mel frame t reads the waveform from sample 160 t - 200 to 160 t + 199, and the STFT mirrors the waveform
  at its end: behind a margin of zeros it mirrors zeros, so that every kept frame is the padded one's;
- zeros never raise the maximum that the dynamic floor of the log-mel hangs on;
- the padded computation masks all later positions in the encoder's attention, so they need not be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoProcessor,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
)

from lalm import head_gate
from lalm.audio import SAMPLE_RATE_HZ
from lalm.audio_input import AudioInput
from lalm.errors import EmptyAudioError
from lalm.families import pruned_qwen2  # noqa: F401  (transformers then loads pruned decoders too)
from lalm.families.checks import check_complete, check_extractor, of_whisper
from lalm.families.end_of_text import eos_token_ids
from lalm.families.placement import Placement
from lalm.families.prompt_embeds import prompt_embeds
from lalm.family import AudioFeatures, ModelFamily
from lalm.fingerprint import fingerprint
from lalm.head_mask import ModelIdentity

FAMILY = "qwen2_audio"
MARGIN_FRAMES = 2
MIN_FRAMES = 3  # fewer give no audio token at all; a shorter clip gets silence up to here (30 ms)


class Qwen2AudioFamily:
    """A loaded Qwen2-Audio; `load_qwen2_audio` makes it. See `lalm.family.ModelFamily` for the methods."""

    def __init__(self, model: Any, processor: Any, identity: ModelIdentity) -> None:
        self.model: PreTrainedModel = model
        self.identity = identity
        self.audio_input = AudioInput()
        self.decoder: PreTrainedModel = model.model.language_model
        self.lm_head: nn.Module = model.lm_head
        self._encoder = model.model.audio_tower
        self._projector = model.model.multi_modal_projector
        self._processor = processor
        self._extractor = processor.feature_extractor
        self._tokenizer = processor.tokenizer
        self._max_frames: int = 2 * self._encoder.max_source_positions
        self.max_audio_s: float = self._max_frames * self._extractor.hop_length / SAMPLE_RATE_HZ
        self.eos_token_ids = eos_token_ids(self._tokenizer, [model.generation_config])

    @property
    def device(self) -> torch.device:
        return head_gate.input_device(self.decoder)

    @property
    def _encoder_device(self) -> torch.device:
        return head_gate.execution_device(self._encoder.conv1)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def features(self, waveform: NDArray[np.float32]) -> AudioFeatures:
        """See `ModelFamily`. A clip under 30 ms is treated as one of 30 ms that ends in silence.

        Raises:
            EmptyAudioError: no samples.
        """
        if waveform.size == 0:
            raise EmptyAudioError("the audio has no samples")
        hop = self._extractor.hop_length
        num_frames = min(max(-(-waveform.size // hop), MIN_FRAMES), self._max_frames)
        width = min(num_frames + MARGIN_FRAMES, self._max_frames)
        mel = self._extractor(
            waveform,
            sampling_rate=SAMPLE_RATE_HZ,
            padding="max_length",
            max_length=width * hop,
            truncation=True,
            return_tensors="pt",
        ).input_features[0]
        return AudioFeatures(mel, num_frames, _num_positions(num_frames) // 2)

    @torch.no_grad()
    def embed_audio(self, features: Sequence[AudioFeatures]) -> list[Tensor]:
        """See `ModelFamily`. Clips of much the same length share a pass of the encoder."""
        embeds: dict[int, Tensor] = {}
        alone = self._encoder_device.type == "cpu"
        for places in _batches([clip.num_frames for clip in features], alone=alone):
            of_batch = self._embed_padded([features[place] for place in places])
            embeds.update(zip(places, of_batch, strict=True))
        return [embeds[place] for place in range(len(features))]

    def _embed_padded(self, features: Sequence[AudioFeatures]) -> list[Tensor]:
        width = max(clip.mel.shape[1] for clip in features)
        mel = torch.stack([F.pad(clip.mel, (0, width - clip.mel.shape[1])) for clip in features])
        num_positions = [_num_positions(clip.num_frames) for clip in features]
        mel = mel.to(device=self._encoder_device, dtype=self.dtype)
        embeds = self._projector(self._encode(mel, num_positions)).to(self.device)
        return [embeds[row, : clip.num_audio_tokens] for row, clip in enumerate(features)]

    def _encode(self, mel: Tensor, num_positions: list[int]) -> Tensor:
        """The encoder's own forward without its demand for 30 s.

        mel: [batch, num_mel_bins, num_frames]; num_positions: of each clip after the convolutions.
        Returns [batch, max(num_positions) // 2, d_model]; what lies beyond a clip's own tokens is noise.
        """
        encoder, longest = self._encoder, max(num_positions)
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)[:, :longest]
        hidden = hidden + encoder.embed_positions(torch.arange(longest, device=hidden.device))
        attention_mask = None
        if min(num_positions) < longest:
            lengths = torch.tensor(num_positions, device=mel.device)
            valid = torch.arange(longest, device=mel.device) < lengths[:, None]
            attention_mask = valid[:, None, None, :].expand(-1, 1, longest, -1)
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask)
        hidden = encoder.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)
        return encoder.layer_norm(hidden)  # type: ignore[no-any-return]

    def prompt_segments(self, instruction: str | None, num_audios: int) -> list[list[int]]:
        """See `ModelFamily`."""
        processor = self._processor
        if instruction is None:
            audio = f"{processor.audio_bos_token}{processor.audio_token}{processor.audio_eos_token}"
            text = audio * num_audios
        else:
            audios = [{"type": "audio", "audio_url": ""}] * num_audios
            conversation = [{"role": "user", "content": [*audios, {"type": "text", "text": instruction}]}]
            text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        segments = text.split(processor.audio_token)
        if len(segments) != num_audios + 1:
            raise ValueError(f"the instruction must not contain {processor.audio_token}")
        return [self.encode_text(segment) for segment in segments]

    def embed_prompt(self, audio_embeds: Sequence[Tensor], instruction: str | None = None) -> Tensor:
        """See `ModelFamily`."""
        return prompt_embeds(self, audio_embeds, instruction)

    def encode_text(self, text: str) -> list[int]:
        """See `ModelFamily`. The backend tokenizer: fast, and safe from any thread."""
        return list(self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def decode_tokens(self, ids: Sequence[int]) -> str:
        """See `ModelFamily`."""
        return str(self._tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def load_qwen2_audio(folder: Path, name: str, placement: Placement) -> ModelFamily:
    """Load the checkpoint in `folder`, freeze it, install the head gate.

    Raises:
        ModelError: incomplete, or its parts do not fit together; what transformers raises on a damaged
            checkpoint comes through.
    """
    config = Qwen2AudioConfig.from_pretrained(folder, local_files_only=True)
    loaded: Any = Qwen2AudioForConditionalGeneration.from_pretrained(
        folder,
        **placement.arguments(Qwen2AudioForConditionalGeneration, config),
        attn_implementation="sdpa",
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    check_complete(folder, info["missing_keys"])
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    check_extractor(folder, processor.feature_extractor, of_whisper(model.config.audio_config))
    placement.finish(model)
    model.eval().requires_grad_(False)
    decoder = model.model.language_model
    head_gate.install(decoder)
    return Qwen2AudioFamily(model, processor, _identity(folder, name, model.config))


def identify_qwen2_audio(folder: Path, name: str) -> ModelIdentity:
    """Which model the checkpoint in `folder` is; loads no weights.

    Raises:
        ModelError: the weights cannot be read.
    """
    config = Qwen2AudioConfig.from_pretrained(folder, local_files_only=True)
    return _identity(folder, name, config)


def _identity(folder: Path, name: str, config: Any) -> ModelIdentity:
    return ModelIdentity(
        family=FAMILY,
        name=name,
        fingerprint=fingerprint(folder, _essentials(config)),
        num_layers=config.text_config.num_hidden_layers,
        num_heads=config.text_config.num_attention_heads,
    )


def _batches(lengths: Sequence[int], *, alone: bool) -> list[list[int]]:
    """Places of clips to encode together: at most a quarter of a batch is padding, none if each goes `alone`.

    A CPU is busy with one clip already; what it computes of padding is lost.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place], reverse=True):
        if batches and not alone and lengths[place] >= 0.75 * lengths[batches[-1][0]]:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def _num_positions(num_frames: int) -> int:
    """Encoder positions of a clip after the convolutions; pooling halves them into audio tokens."""
    return (num_frames - 1) // 2 + 1


def _essentials(config: Any) -> dict[str, Any]:
    """What of the configuration decides over the computation, and no version of a library changes."""
    text, audio = config.text_config, config.audio_config
    sizes = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    decoder_keys = (*sizes, "num_key_value_heads", "vocab_size", "rms_norm_eps")
    encoder_keys = (*sizes, "num_mel_bins", "max_source_positions")
    return {
        "family": FAMILY,
        "decoder": {key: getattr(text, key) for key in decoder_keys},
        "rope_theta": text.rope_parameters["rope_theta"],
        "encoder": {key: getattr(audio, key) for key in encoder_keys},
    }
