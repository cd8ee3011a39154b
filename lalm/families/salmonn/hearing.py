"""What SALMONN hears: Whisper and BEATs side by side, and the Q-Former that makes 88 tokens of them.

    mel   -> Whisper encoder -> LayerNorm --+
                                            +-> windows of 17 positions -> Q-Former -> projection
    fbank -> BEATs           -> LayerNorm --+

Source: SALMONN (arXiv 2310.13289), section 3.1, "Dual Auditory Encoders" and "Window-level Q-Former".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Blip2QFormerConfig, Blip2QFormerModel, PreTrainedModel, WhisperConfig

from lalm.families.salmonn.beats import Beats

WINDOW = 17  # positions of the encoders, 0.34 s
LAYER_NORM_EPS = 1e-12


class Bridge(nn.Module):
    """From the encoders' hidden states to embeddings of the decoder; named as in the published checkpoint."""

    def __init__(
        self, whisper_width: int, beats_width: int, qformer: Blip2QFormerConfig, hidden: int
    ) -> None:
        super().__init__()
        self.ln_speech = nn.LayerNorm(whisper_width)
        self.ln_audio = nn.LayerNorm(beats_width)
        self.speech_query_tokens = nn.Parameter(torch.empty(1, 1, qformer.hidden_size))
        self.speech_Qformer = Blip2QFormerModel(qformer)
        self.speech_llama_proj = nn.Linear(qformer.hidden_size, hidden)

    def forward(self, speech: Tensor, audio: Tensor, valid: Tensor) -> Tensor:
        """Fuse a batch.

        speech: of Whisper, [batch, num_positions, width]; audio: of BEATs, [batch, fewer, width];
        valid: bool [batch, fewer], which positions of `audio` are a clip's own: the others count as zeros.
        Returns [batch, num_positions // 17, hidden]; positions that fill no window are dropped.
        """
        heard = self.ln_audio(audio) * valid[..., None]
        heard = F.pad(heard, (0, 0, 0, speech.shape[1] - heard.shape[1]))
        fused = torch.cat([self.ln_speech(speech), heard], dim=-1)
        batch, num_windows = len(fused), fused.shape[1] // WINDOW
        windows = fused[:, : num_windows * WINDOW].reshape(batch * num_windows, WINDOW, -1)
        queries = self.speech_query_tokens.expand(len(windows), -1, -1)
        answers = self.speech_Qformer(query_embeds=queries, encoder_hidden_states=windows).last_hidden_state
        tokens: Tensor = self.speech_llama_proj(answers)
        return tokens.reshape(batch, num_windows, -1)


class Hearing(nn.Module):
    """Both encoders and the bridge.

    In half precision it computes as the published scripts do, under autocast: linear layers and convolutions
    in half precision, norms, softmax and residual sums in float32.
    """

    def __init__(self, whisper: PreTrainedModel, beats: Beats, bridge: Bridge, dtype: torch.dtype) -> None:
        super().__init__()
        self.whisper = whisper
        self.beats = beats
        self.bridge = bridge
        self._dtype = dtype

    @property
    def num_tokens(self) -> int:
        """Audio tokens of every clip."""
        config = self.whisper.config
        assert isinstance(config, WhisperConfig)
        return int(config.max_source_positions) // WINDOW

    @property
    def device(self) -> torch.device:
        """Where encoders and bridge are; the decoder may be elsewhere."""
        return self.bridge.speech_query_tokens.device

    def forward(self, mel: Tensor, fbanks: Sequence[Tensor]) -> Tensor:
        """mel: float32 [batch, num_mel_bins, 3000]; fbanks: float32 [num_frames, 128] of each clip.

        Returns [batch, num_tokens, hidden]; a clip's tokens are the same alone and in a batch.
        """
        with torch.autocast(mel.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            speech = self.whisper(mel).last_hidden_state
            padded = pad_sequence(list(fbanks), batch_first=True)
            audio, valid = self.beats(padded, [len(fbank) for fbank in fbanks])
            tokens: Tensor = self.bridge(speech, audio, valid)
        return tokens.to(self._dtype)


def stored_dtype(dtype: torch.dtype, holder: nn.Module) -> torch.dtype:
    """What a parameter of `holder` is kept in: half precision only where autocast would round it anyway."""
    return dtype if isinstance(holder, nn.Linear | nn.Conv1d | nn.Conv2d) else torch.float32


def qformer_config(width: int, inner: int, num_layers: int, num_heads: int, heard: int) -> Blip2QFormerConfig:
    """BERT with cross-attention in every layer; sizes are those of the checkpoint.

    width, inner: of hidden states and of the feed-forward; heard: width of both encoders together.
    """
    return Blip2QFormerConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        encoder_hidden_size=heard,
        cross_attention_frequency=1,
        hidden_act="gelu",
        layer_norm_eps=LAYER_NORM_EPS,
    )
