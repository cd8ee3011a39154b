"""First stage of pretraining: the audio encoder learns words, letters, gender, emotion, sounds, speakers and
what these were drawn with at once; and, where there is a trained decoder already, by that one's answers.

Words and letters by CTC, of the one speaker, or of the first of two; the words of the second by a layer of
its own. What a recording does not have (a speaker in a sound scene) adds no loss.

A new encoder learns much faster with a trained one beside it, even one that hears worse: at first it is to
put out what that one does, frame by frame.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jiwer import wer
from torch import Tensor
from torch.nn import functional as F

from training.tiny.decoder_stage import DecoderStage
from training.tiny.features import Changes, Corpus, augment, draw_changes
from training.tiny.listener import (
    LETTERS,
    NO_LABEL,
    SPEAKER_WIDTH,
    Listener,
    ctc,
    labels,
    mean_token,
)
from training.tiny.model import encode, new_tower
from training.tiny.optimizer import MatrixOptimizer, WeightAverage
from training.tiny.records import Pair, Record
from training.tiny.run import Run, learning_rate
from training.tiny.sounds import EVENTS
from training.tiny.speakers import SpeakerBatches, TraitScale
from training.tiny.voices import EMOTIONS, GENDERS

LISTENER_RATE = 2e-3  # where the encoder stays as it is
WEIGHTS = {  # of the losses; of others 1
    "words": 2.0,
    "second": 2.0,
    "speaker": 2.0,
    "traits": 1.5,
    "letters": 0.7,
    "gender": 2.0,
    "emotion": 5.0,
    "events": 2.0,
    "answers": 2.0,
    "tokens": 4.0,
    "frames": 2.0,
}
TAUGHT_STEPS = 1000  # a new encoder has a teacher
SILENT_STEPS = 400  # and for these learns by no answers
# Of the steps, these have the peak learning rate: of an encoder that is taught, of one with its decoder.
TAUGHT_FLAT_SHARE, TOGETHER_FLAT_SHARE = 0.6, 0.2
PAIR_SHARE = 0.3  # of the batches that have a decoder's answers has few speakers, and is about pairs of them
NUM_PAIRS = 144  # in such a batch


class EncoderStage:
    """Trains the audio tower of a run's model."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tower = run.model.model.audio_tower
        names = sorted({r.speaker for r in run.train.records if r.speaker})
        width, vocabulary = self._tower.config.d_model, len(run.tokenizer)
        self._listener = Listener(width, vocabulary, names).to(run.device)
        self._traits = TraitScale(run.train.records)
        self._speaker_batches = SpeakerBatches(run.train, run.rng)
        self._state = run.work / "encoder.pt"
        self._teacher: Any = None

    def renew(self) -> None:
        """Put a new tower in the place of the run's, which teaches it from now on."""
        self._teacher = self._tower.eval().requires_grad_(False)
        self._tower = new_tower(self._teacher, *self._run.some_clips()).to(self._run.device)
        self._run.model.model.audio_tower = self._tower
        self._run.model.config.audio_config = self._tower.config

    def load(self) -> None:
        """Read the tower that an earlier run saved."""
        saved = torch.load(self._state, weights_only=True, map_location=self._run.device)
        self._tower.load_state_dict(saved["tower"])
        self._listener.load_state_dict(saved["listener"])

    def train_listener(self, steps: int, batch_size: int) -> None:
        """Train the layers that train the encoder, and leave the encoder as it is."""
        optimizer = MatrixOptimizer([self._listener])
        for step, indices in zip(range(steps), self._run.endless_batches(batch_size), strict=False):
            changes = draw_changes(self._run.generator)
            mels, lengths = self._augmented(indices, changes)
            with torch.no_grad():
                heard = self._hear(self._tower, mels, lengths)
            losses = self._losses(indices, changes, *heard)
            optimizer.step(_sum(losses), learning_rate(step, steps, LISTENER_RATE))

    def fit_listener(self, records: list[Record], means: Tensor) -> Listener:
        """Fit what speakers and emotions are told apart by to the encoder as it is, which learns better by it
        then.

        records: several of each speaker's in the train split; means: their mean tokens [recordings, width].
        """
        classes, device = self._listener.classes, self._run.device
        speakers = labels([r.speaker for r in records], classes["speaker"], device)
        emotions = labels([r.emotion for r in records], classes["emotion"], device)
        self._listener.fit(means, speakers, emotions)
        return self._listener

    def train(
        self,
        steps: int,
        batch_size: int,
        peak_rate: float,
        decoder: DecoderStage | None = None,
        *,
        together: bool = False,
    ) -> None:
        """Train for `steps`; the log gets the dev split's scores every 250. The last weights are an average.

        decoder: a trained one, by whose answers the encoder learns too (a new one only after `SILENT_STEPS`);
        it stays as it is unless both are to learn `together`.
        """
        taught = TAUGHT_FLAT_SHARE if self._teacher is not None else 0.0
        flat = round(steps * (TOGETHER_FLAT_SHARE if together else taught))
        run, tower = self._run, self._tower.train()
        started, total = time.monotonic(), 0.0
        with decoder.answering(learns=together) if decoder else nullcontext():
            modules = [tower, self._listener, *(decoder.parts if decoder else ())]
            optimizer, average = MatrixOptimizer(modules), WeightAverage(modules, steps)
            for step, indices in zip(range(steps), run.endless_batches(batch_size), strict=False):
                loss = _sum(self._losses_of_step(step, indices, decoder))
                optimizer.step(loss, learning_rate(step, steps, peak_rate, flat=flat))
                average.update()
                total += loss.item()
                if step + 1 == steps:
                    average.apply()
                if (step + 1) % 250 == 0 or step + 1 == steps:
                    seconds, mean = time.monotonic() - started, total / (step % 250 + 1)
                    scores = self.scores(run.dev)
                    run.report(stage="encoder", step=step + 1, seconds=seconds, loss=mean, **scores)
                    total = 0.0
                    self._save()
                    if decoder and together:
                        decoder.save()

    def _save(self) -> None:
        """Write the tower, and what trains it, for `load`."""
        torch.save({"tower": self._tower.state_dict(), "listener": self._listener.state_dict()}, self._state)

    def _losses_of_step(
        self, step: int, indices: list[int], decoder: DecoderStage | None
    ) -> dict[str, Tensor]:
        """By name, of the clips `indices` of the train split or, in some batches, of a few speakers."""
        answering = decoder if self._teacher is None or step >= SILENT_STEPS else None
        clips, pairs, changes = indices, [], draw_changes(self._run.generator)
        if answering is not None and self._speaker_batches and self._run.rng.random() < PAIR_SHARE:
            batch = self._speaker_batches.draw(NUM_PAIRS)
            clips, pairs, changes = batch.clips, batch.pairs, replace(changes, shifted=False)
        mels, lengths = self._augmented(clips, changes)
        heard = self._hear(self._tower, mels, lengths)
        losses = self._losses(clips, changes, *heard)
        if self._teacher is not None and step < TAUGHT_STEPS:
            losses |= self._taught(mels, lengths, *heard)
        if answering is not None:
            losses["answers"] = answering.heard_loss(clips, pairs, *heard[2:])
        return losses

    def _augmented(self, indices: list[int], changes: Changes) -> tuple[Tensor, Tensor]:
        """Log-mels and lengths of the clips `indices` of the train split, changed like this."""
        mels, lengths = augment(*self._run.train.pad(indices), self._run.generator, changes)
        return mels.to(self._run.device), lengths.to(self._run.device)

    def _hear(self, tower: Any, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `encode` makes of them with a tower."""
        with self._run.autocast():
            return encode(tower, mels, lengths)

    def _taught(
        self,
        mels: Tensor,
        lengths: Tensor,
        frames: Tensor,
        num_frames: Tensor,
        tokens: Tensor,
        num_tokens: Tensor,
    ) -> dict[str, Tensor]:
        """How far the tower's frames (as its last norm leaves them) and tokens are from the teacher's."""
        with torch.no_grad():
            right_frames, _, right_tokens, _ = self._hear(self._teacher, mels, lengths)
        norm, right_norm = self._tower.layer_norm, self._teacher.layer_norm
        return {
            "frames": _distance(norm(frames.float()), right_norm(right_frames.float()), num_frames),
            "tokens": _distance(tokens.float(), right_tokens.float(), num_tokens),
        }

    def _losses(
        self,
        indices: list[int],
        changes: Changes,
        frames: Tensor,
        num_frames: Tensor,
        tokens: Tensor,
        num_tokens: Tensor,
    ) -> dict[str, Tensor]:
        """By name, of what is heard (see `encode`) of the clips `indices` after `changes`."""
        run, listener = self._run, self._listener
        records = [run.train.records[i] for i in indices]
        with run.autocast():
            mean = mean_token(tokens, num_tokens)
        known = [row for row, record in enumerate(records) if record.has_known_words]
        pieces = [self._ids(records[row].transcript) for row in known]
        spelled = [[LETTERS.index(c) for c in records[row].transcript or ""] for row in known]
        out = {}
        if known:
            out = {
                "words": ctc(listener.words(tokens[known]), num_tokens[known], pieces),
                "letters": ctc(listener.letters(frames[known]), num_frames[known], spelled),
            }
        both = [row for row, record in enumerate(records) if record.second is not None]
        if both:
            second = [self._ids(records[row].second) for row in both]
            out["second"] = (
                ctc(listener.second(tokens[both]), num_tokens[both], second) * len(both) / len(records)
            )
        for name, table in listener.classes.items():
            target = labels([getattr(r, name) for r in records], table, run.device)
            if (target != NO_LABEL).any():
                out[name] = F.cross_entropy(
                    getattr(listener, name)(mean).float(), target, ignore_index=NO_LABEL
                )
        right = self._traits.targets(records, changes).to(run.device)
        drawn = ~right.isnan()
        if drawn.any():
            out["traits"] = F.mse_loss(listener.traits(mean).float()[drawn], right[drawn])
        heard = torch.tensor([[float(e in r.sounds) for e in EVENTS] for r in records], device=run.device)
        events = F.binary_cross_entropy_with_logits(listener.events(mean).float(), heard, reduction="none")
        out["events"] = events.sum(1).mean()
        return out

    @torch.inference_mode()
    def letter_log_probs(self, mel: np.ndarray) -> Tensor:
        """What the letters of a recording are: log-probabilities [num_frames, letters and blank].

        mel: log-mel spectrogram [num_mel_bins, num_frames].
        """
        device = self._run.device
        mels, lengths = Corpus([], [mel], []).pad([0])
        frames, num_frames, _, _ = encode(self._tower, mels.to(device), lengths.to(device))
        return F.log_softmax(self._listener.letters(frames[0, : int(num_frames)]), dim=-1).cpu()

    def _ids(self, text: str | None) -> list[int]:
        return list(self._run.tokenizer.backend_tokenizer.encode(text or "", add_special_tokens=False).ids)

    @torch.inference_mode()
    def scores(self, corpus: Corpus) -> dict[str, float]:
        """Word error rate of greedy CTC on one speaker, accuracy of gender, emotion and sets of sounds, and
        of the pairs of speakers (by the threshold on the cosine that does best)."""
        run, listener = self._run, self._listener
        references, heard = [], []
        right: dict[str, list[bool]] = {"gender": [], "emotion": [], "events": []}
        voices = torch.empty(len(corpus.records), SPEAKER_WIDTH)
        for indices in corpus.batches(run.rng_of("scores"), 50):
            mels, lengths = corpus.pad(indices)
            with run.autocast():
                _, _, tokens, num = encode(self._tower, mels.to(run.device), lengths.to(run.device))
                words = listener.words(tokens).argmax(-1).tolist()
                mean = mean_token(tokens, num)
                gender, emotion = listener.gender(mean).argmax(-1), listener.emotion(mean).argmax(-1)
                events = listener.events(mean) > 0
                voices[indices] = listener.voice(mean).float().cpu()
            for row, i in enumerate(indices):
                record = corpus.records[i]
                names = {name for name, there in zip(EVENTS, events[row].tolist(), strict=True) if there}
                right["events"].append(names == set(record.sounds))
                if record.gender is None or record.transcript is None:
                    continue
                references.append(record.transcript)
                heard.append(self._collapse(words[row][: int(num[row])]))
                right["gender"].append(GENDERS[int(gender[row])] == record.gender)
                if record.emotion is not None:
                    right["emotion"].append(EMOTIONS[int(emotion[row])] == record.emotion)
        shares = {name: sum(values) / len(values) for name, values in right.items() if values}
        return {"dev_wer": float(wer(references, heard)), **shares, **_verification(corpus.pairs, voices)}

    def _collapse(self, best: list[int]) -> str:
        """Greedy CTC: repeated symbols count once, blanks not at all."""
        vocabulary = len(self._run.tokenizer)
        ids = [t for t, before in zip(best, [-1, *best], strict=False) if t != before and t < vocabulary]
        return str(self._run.tokenizer.decode(ids)).strip()


def _verification(pairs: list[Pair], voices: Tensor) -> dict[str, float]:
    """Accuracy on pairs of the threshold on the cosine that does best; voices [recordings, width]."""
    if not pairs:
        return {}
    ends = voices[[p.first for p in pairs]], voices[[p.second for p in pairs]]
    cosines, same = F.cosine_similarity(*ends), torch.tensor([p.same for p in pairs])
    right = (cosines[None] >= cosines[:, None]) == same  # [thresholds, pairs]
    return {"pairs": float(right.float().mean(1).max())}


def _distance(values: Tensor, right: Tensor, lengths: Tensor) -> Tensor:
    """Mean squared difference of [batch, time, width], over what exists of lengths [batch]."""
    valid = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    return (values - right).square().mean(2)[valid].mean()


def _sum(losses: dict[str, Tensor]) -> Tensor:
    """The losses, weighted by their names."""
    weighted = [WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()]
    return sum(weighted, torch.zeros(()))
