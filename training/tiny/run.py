"""What both stages of pretraining share: the model, its tokenizer, the corpus, random numbers and the log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch

from training.tiny.features import Corpus
from training.tiny.local_heads import give_local_heads
from training.tiny.model import audio_config, build_model, load, train_tokenizer
from training.tiny.records import Record
from training.tiny.segments import INSTRUCTIONS, texts_of

NUM_CLIPS = 200  # clips that say how a new encoder's inputs are


def learning_rate(step: int, steps: int, peak: float, warmup: int = 300, flat: int = 0) -> float:
    """Linear warm-up, `flat` steps at the peak, then cosine to 1 % of it."""
    warmup = min(warmup, steps // 5)
    if step < warmup:
        return peak * (step + 1) / warmup
    falls = max(1, steps - warmup - flat)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup - flat) / falls)))


def tokenizer_texts(records: list[Record]) -> list[str]:
    """What the tokenizer is trained on: every answer, the second speakers' words and the instructions."""
    texts = [text for record in records for text in texts_of(record).values()]
    return texts + [wording for wordings in INSTRUCTIONS.values() for wording in wordings] * 50


class Run:
    """State of one pretraining; `work` keeps the log and the stages' weights.

    `half` computes in bfloat16 where that is safe; weights, optimizer and attention stay float32. Where
    `checkpoint` is given, tokenizer and model are those of that finished one; otherwise they are new.
    """

    def __init__(
        self,
        corpus: Path,
        work: Path,
        device: str,
        seed: int,
        *,
        half: bool = True,
        checkpoint: Path | None = None,
    ) -> None:
        torch.manual_seed(seed)
        work.mkdir(parents=True, exist_ok=True)
        self.device, self.work, self.seed, self._half = device, work, seed, half
        self.rng = Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        started = time.monotonic()
        self.train, self.dev = Corpus.load(corpus / "train"), Corpus.load(corpus / "dev")
        self.tokenizer: Any
        if checkpoint is None:
            self.tokenizer = train_tokenizer(tokenizer_texts(self.train.records))
            model = build_model(self.tokenizer, audio_config())
            give_local_heads(model.model.audio_tower, *self.some_clips())
        else:
            self.tokenizer, model = load(checkpoint)
        self.model = model.to(device)
        self._log = (work / "log.jsonl").open("a", encoding="utf-8")
        self.report(stage="features", clips=len(self.train.mels), seconds=time.monotonic() - started)

    def report(self, **values: Any) -> None:
        """Print a line of the log and keep it."""
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})
        print(line, flush=True)
        print(line, file=self._log, flush=True)

    def rng_of(self, purpose: str) -> Random:
        """A generator that always draws the same."""
        return Random(f"{self.seed}-{purpose}")

    def autocast(self) -> torch.autocast:
        """bfloat16 for matrix products, if the run is to have it."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self._half)

    def some_clips(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mels and lengths of `NUM_CLIPS` clips of the train split, always the same (`Corpus.pad`)."""
        mels = self.train.mels
        return self.train.pad(self.rng_of("clips").sample(range(len(mels)), min(NUM_CLIPS, len(mels))))

    def endless_batches(self, size: int) -> Iterator[list[int]]:
        """Batches of indices of the train split, pass after pass."""
        while True:
            yield from self.train.batches(self.rng, size)
