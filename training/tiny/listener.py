"""The layers that train the audio encoder, and their losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.tiny.sounds import EVENTS
from training.tiny.speakers import NUM_TRAITS
from training.tiny.voices import EMOTIONS, GENDERS

LETTERS = " abcdefghijklmnopqrstuvwxyz"
SPEAKER_WIDTH = 32  # of what speakers are told apart by
SPEAKER_SCALE = 15.0  # of the cosines, as logits
NO_LABEL = -100


class Listener(nn.Module):
    """The layers that train the encoder; thrown away afterwards."""

    def __init__(self, width: int, vocab_size: int, speakers: list[str]) -> None:
        super().__init__()
        self.classes = {
            name: {value: index for index, value in enumerate(values)}
            for name, values in (("gender", GENDERS), ("emotion", EMOTIONS), ("speaker", speakers))
        }
        self.words = nn.Linear(width, vocab_size + 1)
        self.second = nn.Linear(width, vocab_size + 1)
        self.letters = nn.Linear(width, len(LETTERS) + 1)
        self.gender = nn.Linear(width, len(GENDERS))
        self.emotion = nn.Linear(width, len(EMOTIONS))
        self.traits = nn.Linear(width, NUM_TRAITS)
        self.voice = nn.Linear(width, SPEAKER_WIDTH)
        self.voices = nn.Parameter(torch.randn(len(speakers), SPEAKER_WIDTH))
        self.events = nn.Linear(width, len(EVENTS))

    def speaker(self, mean: Tensor) -> Tensor:
        """Logits of the training speakers, [batch, width] -> [batch, speakers]: scaled cosines, so that what
        tells speakers apart is how near two recordings are, also of speakers who were never heard."""
        return SPEAKER_SCALE * F.normalize(self.voice(mean)) @ F.normalize(self.voices).T


def mean_token(tokens: Tensor, num_tokens: Tensor) -> Tensor:
    """Mean over the tokens that exist: [batch, time, width] -> [batch, width]."""
    valid = torch.arange(tokens.shape[1], device=tokens.device) < num_tokens[:, None]
    return (tokens * valid[..., None]).sum(1) / num_tokens[:, None]


def ctc(logits: Tensor, lengths: Tensor, targets: list[list[int]]) -> Tensor:
    """CTC loss (per target symbol) with the last class as blank; logits [batch, time, classes]."""
    log_probs = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    flat = torch.tensor([t for target in targets for t in target], dtype=torch.long, device=logits.device)
    sizes = torch.tensor([len(target) for target in targets], device=logits.device)
    blank = logits.shape[-1] - 1
    losses = F.ctc_loss(log_probs, flat, lengths, sizes, blank, reduction="none", zero_infinity=True)
    return (losses / sizes.clamp(min=1)).mean()


def labels(values: list[str | None], classes: dict[str, int], device: str) -> Tensor:
    """Class indices [batch], `NO_LABEL` where a value is None or none of the classes."""
    return torch.tensor([classes.get(v or "", NO_LABEL) for v in values], device=device)
