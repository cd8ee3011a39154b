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
MIN_SPREAD = 1e-6
FIT_STEPS, FIT_BATCH, FIT_RATE = 2500, 256, 5e-3  # to a trained encoder
PASSED_SIZE = 4.0  # standard deviation of each number that is passed on, behind the projector; of others 1.2


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

    @torch.enable_grad()
    def fit(self, means: Tensor, speakers: Tensor, emotions: Tensor) -> None:
        """Learn anew what speakers and emotions are told apart by, from several recordings of each speaker.

        means: mean tokens [recordings, width]; speakers, emotions: class indices of these [recordings]. The
        steps of an encoder see a speaker once in dozens, and leave the layers far from what tokens give away.
        """
        centre, spread = means.mean(0), means.std(0, correction=0).clamp(min=MIN_SPREAD)
        scaled = (means - centre) / spread
        layers = self.voice, self.emotion
        for layer in layers:
            layer.reset_parameters()
        nn.init.normal_(self.voices)
        weights = [*self.voice.parameters(), *self.emotion.parameters(), self.voices]
        optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, FIT_RATE, total_steps=FIT_STEPS)
        for _ in range(FIT_STEPS):
            drawn = torch.randint(len(means), (FIT_BATCH,), device=means.device)
            optimizer.zero_grad()
            who = F.cross_entropy(self.speaker(scaled[drawn]), speakers[drawn])
            how = F.cross_entropy(self.emotion(scaled[drawn]), emotions[drawn])
            (who + how).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():  # from now on, of means as they are
            for layer in layers:
                layer.weight.div_(spread)
                layer.bias.sub_(layer.weight @ centre)

    @torch.no_grad()
    def pass_on(self, projector: nn.Linear, means: Tensor) -> None:
        """Have a projector pass on what speakers and emotions are told apart by, in directions of its own: in
        tokens that mostly vary by what is said, a decoder does not find it.

        means: mean tokens [recordings, width].
        """
        rows = torch.cat(  # [numbers, width]
            [
                layer.weight / layer(means).std(0, correction=0).mean().clamp(min=MIN_SPREAD)
                for layer in (self.voice, self.emotion)
            ]
        )
        directions, _ = torch.linalg.qr(torch.randn(projector.out_features, len(rows), device=means.device))
        louder = PASSED_SIZE * directions @ rows  # [out_features, width]
        projector.weight.add_(louder)
        projector.bias.sub_(louder @ means.mean(0))


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
