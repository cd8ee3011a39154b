"""What the service and the training ask of a model, whatever its family.

    waveform --features--> AudioFeatures --embed_audio--> audio embeddings --embed_prompt--> decoder input

A family loads its checkpoints through transformers' own classes, freezes them, and installs the head gate in
the decoder. `lalm.families.load_family` is the door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from lalm.audio_input import AudioInput
from lalm.head_mask import ModelIdentity


@dataclass(frozen=True)
class AudioFeatures:
    """What the encoder needs of one clip, and no more.

    mel: float32 [num_mel_bins, num_frames + margin], on the CPU. The margin is what the encoder looks at
    beyond the end of the clip; it belongs to the family.
    num_frames: frames of the clip itself.
    num_audio_tokens: positions the clip takes in the decoder; at least 1.
    extra: what else the family's encoder takes, by a name of its own; on the CPU.
    """

    mel: Tensor
    num_frames: int
    num_audio_tokens: int
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class ModelFamily(Protocol):
    """One loaded, frozen model."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is, and the shape of its head masks."""

    @property
    def max_audio_s(self) -> float:
        """The model's window; `features` cuts what lies behind it."""

    @property
    def audio_input(self) -> AudioInput:
        """What becomes of recordings before `features`."""

    @property
    def model(self) -> PreTrainedModel:
        """The whole transformers model, for `generate`."""

    @property
    def decoder(self) -> PreTrainedModel:
        """The language model without head: `inputs_embeds` to `last_hidden_state`; takes `head_gate`."""

    @property
    def lm_head(self) -> nn.Module:
        """Hidden states [..., hidden] to logits [..., vocab_size]."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are computed in."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Any of these ends an answer."""

    def features(self, waveform: NDArray[np.float32]) -> AudioFeatures:
        """Features of one clip over its true length, cut at `max_audio_s`. CPU; safe from any thread.

        waveform: float32 [num_samples], mono, 16 kHz.

        Raises:
            EmptyAudioError: no samples.
        """

    def embed_audio(self, features: Sequence[AudioFeatures]) -> list[Tensor]:
        """One pass of the encoder over a batch of clips of any lengths.

        Returns for each clip [num_audio_tokens, hidden] on `device` in `dtype`, without gradients; a clip's
        embeddings are the same alone and in a batch, up to rounding.
        """

    def prompt_segments(self, instruction: str | None, num_audios: int) -> list[list[int]]:
        """The prompt's token ids before, between and after the audios: num_audios + 1 lists.

        instruction: None for audio alone (the prompt of a head mask); else the model's own chat template
        around the audios and this text.

        Raises:
            ValueError: the instruction contains the model's audio placeholder.
        """

    def embed_prompt(self, audio_embeds: Sequence[Tensor], instruction: str | None = None) -> Tensor:
        """The decoder's input: `prompt_segments` and the audios in turn, [prompt_len, hidden].

        audio_embeds: one [num_audio_tokens, hidden] an audio, from `embed_audio`.
        """

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text, with nothing added to them."""

    def decode_tokens(self, ids: Sequence[int]) -> str:
        """The text of an answer: special tokens skipped, surrounding space removed."""
