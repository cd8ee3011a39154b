"""Second stage of pretraining: projector and decoder learn every task behind packed instructions.

The encoder is frozen and its outputs are computed once. In the second half, rows with an instruction lose
heads at random, so that many small head contributions carry a task. Head masks are never known here.

Of two recordings as they are, the decoder only learns to compare genders. Half of the batches about pairs
have each recording as a few mean tokens instead, and many more rows in the same time: with these it learns to
compare speakers, and does it with whole recordings too. It learns that best from such batches alone, before
head dropout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.tiny.features import Corpus, augment
from training.tiny.model import encode
from training.tiny.optimizer import MatrixOptimizer
from training.tiny.pairs import draw_pairs
from training.tiny.records import Pair
from training.tiny.run import Run, learning_rate
from training.tiny.segments import Row, RowMaker, pack

NUM_VIEWS = 2  # of each clip: as it is, and augmented
UNPROMPTED_SHARE = 0.25
PAIR_SHARE = 0.25  # of the batches is about two recordings
CONDENSED_SHARE = 0.5  # of these hears each recording as CONDENSED_TOKENS mean tokens, in more rows
CONDENSED_TOKENS = 3
CONDENSED_ROWS = 6  # for each of the batch's clips
COMPARED_PAIRS, COMPARE_RATE = 160, 1.5e-3  # of a step of `compare`
ONE_GENDER_SHARE, TWIN_SHARE = 0.5, 0.75  # of its pairs of two speakers
BARE_SHARE, WHOLE_BARE_SHARE = 0.5, 0.4  # of condensed and of other pairs have no instruction
MAX_DROPOUT = 0.5
WHOLE_PAIRS = 18  # of a batch of few speakers
CONDENSED_WEIGHT, WHOLE_WEIGHT = 0.5, 0.7  # in the loss of such a batch
HEARD_SHARE, HEARD_SEGMENTS = 0.5, 4  # the clips whose answers the encoder learns by, and answers each
DEGRADED_SHARE = 0.6  # of the steps in which the decoder learns along with the encoder


class HeadDropout:
    """Silences attention output channels (the heads-to-be after splitting) of whole rows at a rate drawn a
    row."""

    def __init__(self, decoder: Any, generator: torch.Generator) -> None:
        self._gates: list[Tensor] = []
        self._generator = generator
        self._layers = [layer.self_attn.o_proj for layer in decoder.layers]
        self._hooks = [
            o_proj.register_forward_pre_hook(lambda _, args, i=i: (args[0] * self._gates[i].to(args[0]),))
            for i, o_proj in enumerate(self._layers)
        ]

    def draw(self, max_rates: list[float]) -> None:
        """Draw gates [rows, 1, channels] a layer; a row's rate is uniform between 0 and its maximum."""
        rates = (
            torch.rand(len(max_rates), 1, 1, generator=self._generator)
            * torch.tensor(max_rates)[:, None, None]
        )
        self._gates = [
            (torch.rand(len(max_rates), 1, o.in_features, generator=self._generator) >= rates).float()
            for o in self._layers
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


class DecoderStage:
    """Trains projector, decoder and output layer of a run's model."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._maker = RowMaker(run.tokenizer, run.rng)
        self.parts = (
            run.model.model.language_model,
            run.model.model.multi_modal_projector,
            run.model.lm_head,
        )
        self._state = run.work / "decoder.pt"
        self._gates: HeadDropout | None = None

    def load(self) -> None:
        """Read the whole model that an earlier run saved."""
        saved = torch.load(self._state, weights_only=True, map_location=self._run.device)
        self._run.model.load_state_dict(saved)

    def save(self) -> None:
        """Write the whole model for `load`."""
        torch.save(self._run.model.state_dict(), self._state)

    @contextmanager
    def answering(self, *, learns: bool) -> Iterator[None]:
        """In here the encoder may be trained by `heard_loss`, and the decoder stays as it is or, with
        `learns`, is trained too: then a share of the rows has no instruction, and in a share of the steps
        instructions are degraded and heads dropped."""
        self.takes_gradients(learns)
        if learns:
            self._gates = HeadDropout(self._run.model.model.language_model.train(), self._run.generator)
        try:
            yield
        finally:
            if self._gates is not None:
                self._gates.remove()
                self._gates = None

    def compare(self, some: Corpus, heard: list[Tensor], steps: int) -> None:
        """Train for `steps` on pairs of a few speakers' recordings alone, condensed; heard: the encoder's
        outputs of these recordings."""
        run, few = self._run, [condensed(clip) for clip in heard]
        dev = [condensed(clip) for clip in self.encode_all(run.dev, augmented=False)]
        run.model.model.language_model.train()
        self.takes_gradients(True)
        optimizer = MatrixOptimizer(self.parts)
        started, losses = time.monotonic(), []
        for step in range(steps):
            pairs = draw_pairs(some.records, COMPARED_PAIRS, run.rng, ONE_GENDER_SHARE, TWIN_SHARE)
            rows = [self._maker.two(pair, some.records, unprompted=False, degrade=False) for pair in pairs]
            loss = self.answer_loss(rows, [[few[i] for i in row.clips] for row in rows])
            optimizer.step(loss, learning_rate(step, steps, COMPARE_RATE))
            losses.append(loss.item())
        seconds, right = time.monotonic() - started, self.verification(run.dev, dev)
        run.report(stage="pairs", step=steps, seconds=seconds, loss=fmean(losses), pairs=right)

    def train(self, steps: int, batch_size: int, peak_rate: float, dropout_from: float) -> None:
        """Train for `steps`; head dropout begins after the share `dropout_from` of them."""
        run = self._run
        decoder = run.model.model.language_model.train()
        self.takes_gradients(True)
        optimizer = MatrixOptimizer(self.parts)
        views = [self.encode_all(run.train, augmented=view > 0) for view in range(NUM_VIEWS)]
        dev = self.encode_all(run.dev, augmented=False)
        gates = HeadDropout(decoder, run.generator)
        started, losses = time.monotonic(), []
        for step, indices in zip(range(steps), run.endless_batches(batch_size), strict=False):
            late = step >= dropout_from * steps
            rows, clips = self._batch(views, indices, degrade=late)
            gates.draw([MAX_DROPOUT if late and not row.unprompted else 0.0 for row in rows])
            loss = self.answer_loss(rows, clips)
            optimizer.step(loss, learning_rate(step, steps, peak_rate))
            losses.append(loss.item())
            if (step + 1) % 250 == 0 or step + 1 == steps:
                gates.draw([0.0])
                seconds, pairs = time.monotonic() - started, self.verification(run.dev, dev)
                run.report(stage="decoder", step=step + 1, seconds=seconds, loss=fmean(losses), pairs=pairs)
                losses.clear()
                self.save()
        gates.remove()

    def heard_loss(self, indices: list[int], pairs: list[Pair], tokens: Tensor, num_tokens: Tensor) -> Tensor:
        """Loss of the answers to instructions about what is heard, to train the encoder by.

        indices: clips of the train split; pairs: of positions in `indices`, where the answers are to be about
        pairs: a few of whole recordings, all of condensed ones. tokens: the encoder's outputs, [batch, time,
        d_model]; num_tokens: how many of each clip, [batch].
        """
        records, maker, rng = [self._run.train.records[i] for i in indices], self._maker, self._run.rng
        heard = [clip[:n] for clip, n in zip(tokens, num_tokens.tolist(), strict=True)]
        degrade = self._gates is not None and rng.random() < DEGRADED_SHARE

        def unprompted(share: float = UNPROMPTED_SHARE) -> bool:
            return self._gates is not None and rng.random() < share

        if pairs:
            few = [condensed(clip) for clip in heard]
            bare = [unprompted(BARE_SHARE) for _ in pairs]
            rows = [
                maker.two(pair, records, unprompted=is_bare, degrade=degrade, condensed=True)
                for pair, is_bare in zip(pairs, bare, strict=True)
            ]
            loss = CONDENSED_WEIGHT * self._loss_of_heard(rows, few, degrade=degrade)
            some = pairs[:WHOLE_PAIRS]
            rows = [
                maker.two(pair, records, unprompted=unprompted(WHOLE_BARE_SHARE), degrade=degrade)
                for pair in some
            ]
            return loss + WHOLE_WEIGHT * self._loss_of_heard(rows, heard, degrade=degrade)
        rows = [
            maker.one(i, records[i], unprompted=unprompted(), degrade=degrade, segments=HEARD_SEGMENTS)
            for i in rng.sample(range(len(indices)), max(1, round(len(indices) * HEARD_SHARE)))
        ]
        return self._loss_of_heard(rows, heard, degrade=degrade)

    def _loss_of_heard(self, rows: list[Row], heard: list[Tensor], *, degrade: bool) -> Tensor:
        """Of rows whose clips are positions in `heard`; heads are dropped where instructions are degraded."""
        if self._gates is not None:
            self._gates.draw([MAX_DROPOUT if degrade and not row.unprompted else 0.0 for row in rows])
        return self.answer_loss(rows, [[heard[clip] for clip in row.clips] for row in rows])

    def takes_gradients(self, takes: bool) -> None:
        """Whether what is behind the encoder is to learn, or to stay as it is."""
        for part in self.parts:
            part.requires_grad_(takes)

    @torch.inference_mode()
    def encode_all(self, corpus: Corpus, *, augmented: bool) -> list[Tensor]:
        """The frozen encoder's outputs of a split, float16 [num_audio_tokens, d_model] each."""
        run = self._run
        out: list[Tensor] = [torch.empty(0)] * len(corpus.mels)
        tower = run.model.model.audio_tower.eval()
        for indices in corpus.batches(run.rng, 64):
            mels, lengths = corpus.pad(indices)
            if augmented:
                mels, lengths = augment(mels, lengths, run.generator)
            with run.autocast():
                _, _, tokens, num = encode(tower, mels.to(run.device), lengths.to(run.device))
            for row, i in enumerate(indices):
                out[i] = tokens[row, : int(num[row])].half().clone()
        return out

    @torch.inference_mode()
    def verification(self, corpus: Corpus, encoded: list[Tensor]) -> float:
        """Share of a split's pairs of speakers that are answered right; encoded: of `encode_all`."""
        maker, right = RowMaker(self._run.tokenizer, self._run.rng_of("verification")), 0
        for start in range(0, len(corpus.pairs), 50):
            pairs = corpus.pairs[start : start + 50]
            rows = [maker.two(pair, corpus.records, unprompted=False, degrade=False) for pair in pairs]
            clips = [[encoded[pair.first], encoded[pair.second]] for pair in pairs]
            logits, targets, _ = self._answers(rows, clips)
            lengths = [len(answer) for row in rows for _, answer in row.segments]
            right += sum(bool(part.all()) for part in torch.split(logits.argmax(-1) == targets, lengths))
        return right / max(1, len(corpus.pairs))

    def answer_loss(self, rows: list[Row], clips: list[list[Tensor]]) -> Tensor:
        """Weighted next-token loss of packed rows; ``clips``: the encoder's outputs of each row's clips."""
        logits, targets, weights = self._answers(rows, clips)
        losses = F.cross_entropy(logits, targets, reduction="none")
        return (losses * weights).sum() / weights.sum()

    def _answers(self, rows: list[Row], clips: list[list[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the answers of packed rows, one behind another: logits float32 [tokens, vocab_size], the right
        tokens and their weights [tokens]."""
        run = self._run
        counts = [tuple(len(clip) for clip in row) for row in clips]
        packed = pack(rows, counts, run.tokenizer)
        decoder = run.model.model.language_model
        heard = torch.cat([clip.float() for row in clips for clip in row]).to(run.device)
        with run.autocast():
            embeds = decoder.embed_tokens(packed.ids.to(run.device))
            audio = run.model.model.multi_modal_projector(heard)
            embeds = embeds.masked_scatter(packed.audio.to(run.device)[..., None], audio.to(embeds.dtype))
            hidden = decoder(
                inputs_embeds=embeds,
                attention_mask={"full_attention": packed.attention_mask.to(run.device)},
                position_ids=packed.position_ids.to(run.device),
                use_cache=False,
            ).last_hidden_state
            answered = packed.targets != -100
            logits = run.model.lm_head(hidden[answered.to(run.device)])
        targets, weights = packed.targets[answered], packed.weights[answered]
        return logits.float(), targets.to(run.device), weights.to(run.device)

    def _batch(
        self, views: list[list[Tensor]], indices: list[int], *, degrade: bool
    ) -> tuple[list[Row], list[list[Tensor]]]:
        """Rows about the clips `indices` or, in a share of the batches, about pairs; and what each hears."""
        rng, train, maker = self._run.rng, self._run.train, self._maker
        about_pairs = bool(train.pairs) and rng.random() < PAIR_SHARE
        condense = about_pairs and rng.random() < CONDENSED_SHARE
        rows = []
        if condense:
            for pair in rng.choices(train.pairs, k=len(indices) * CONDENSED_ROWS):
                bare = rng.random() < BARE_SHARE
                rows.append(maker.two(pair, train.records, unprompted=bare, degrade=degrade, condensed=True))
        elif about_pairs:
            for pair in rng.choices(train.pairs, k=len(indices) * 3 // 4):  # one answer each, but two clips
                unprompted = rng.random() < WHOLE_BARE_SHARE
                rows.append(maker.two(pair, train.records, unprompted=unprompted, degrade=degrade))
        else:
            for index in indices:
                unprompted = rng.random() < UNPROMPTED_SHARE
                rows.append(maker.one(index, train.records[index], unprompted=unprompted, degrade=degrade))
        clips = [[rng.choice(views)[i] for i in row.clips] for row in rows]
        if condense:
            clips = [[condensed(clip) for clip in of_row] for of_row in clips]
        return rows, clips


def condensed(clip: Tensor) -> Tensor:
    """The means of a clip's stretches: [num_tokens, width] -> [at most `CONDENSED_TOKENS`, width]."""
    stretches = clip.tensor_split(min(CONDENSED_TOKENS, len(clip)))
    return torch.stack([tokens.float().mean(0) for tokens in stretches])
