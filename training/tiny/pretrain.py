"""Pretrain the embedded model: ``python -m training.tiny.pretrain``.

Two stages. The audio encoder learns words and letters (CTC), gender and emotion together from the first step.
Then it is frozen, its outputs are computed once, and projector and decoder learn the seven tasks behind
packed instructions; in the second half with head dropout on rows with an instruction, so that many small head
contributions carry a task. Last, every head is split into finer ones (the function stays the same). Head
masks are never known here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from training.tiny.corpus import answers
from training.tiny.features import Corpus, spec_augment
from training.tiny.model import build_model, save, split_heads, train_tokenizer
from training.tiny.segments import INSTRUCTIONS, RowMaker, pack
from training.tiny.voices import EMOTIONS, GENDERS

LETTERS = " abcdefghijklmnopqrstuvwxyz"


def encode(tower: Any, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The audio tower over padded clips of true length, as the real one computes it over 30 s.

    Args:
        mels: [batch, num_mel_bins, frames]; lengths: frames that exist, [batch].

    Returns:
        Frames at 50 Hz [batch, frames // 2, d_model], their number, tokens at 25 Hz [batch, frames // 4,
        d_model], their number.
    """
    hidden = F.gelu(tower.conv2(F.gelu(tower.conv1(mels)))).transpose(1, 2)
    num_frames = (lengths - 1) // 2 + 1
    num_tokens = (num_frames - 2) // 2 + 1
    hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
    valid = torch.arange(hidden.shape[1], device=mels.device) < num_frames[:, None]
    for layer in tower.layers:
        hidden = layer(hidden, valid[:, None, None, :])
    pooled = tower.layer_norm(tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))
    return hidden, num_frames, pooled, num_tokens


class Listener(nn.Module):
    """The heads that train the encoder: word and letter CTC, gender and emotion of the mean token."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.words = nn.Linear(width, vocab_size + 1)
        self.letters = nn.Linear(width, len(LETTERS) + 1)
        self.gender = nn.Linear(width, len(GENDERS))
        self.emotion = nn.Linear(width, len(EMOTIONS))


def learning_rate(step: int, steps: int, peak: float, warmup: int = 300) -> float:
    """Linear warm-up, then cosine to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def ctc(logits: Tensor, lengths: Tensor, targets: list[list[int]]) -> Tensor:
    """CTC loss (per target symbol) with the last class as blank; logits [batch, time, classes]."""
    log_probs = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    flat = torch.tensor([t for target in targets for t in target], device=logits.device)
    sizes = torch.tensor([len(target) for target in targets], device=logits.device)
    return F.ctc_loss(log_probs, flat, lengths, sizes, blank=logits.shape[-1] - 1, zero_infinity=True)


def endless(corpus: Corpus, rng: Random, size: int) -> Iterator[list[int]]:
    """Batches of indices, pass after pass."""
    while True:
        yield from corpus.batches(rng, size)


class Pretraining:
    """State of one run: model, tokenizer, corpus, log."""

    def __init__(self, corpus: Path, work: Path, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.device, self.work, self.rng = device, work, Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        started = time.monotonic()
        self.train, self.dev = Corpus.load(corpus / "train"), Corpus.load(corpus / "dev")
        texts = [text for record in self.train.records for text in answers(record).values()]
        wordings = [w for ws in INSTRUCTIONS.values() for w in ws] * 50
        self.tokenizer: Any = train_tokenizer(texts + wordings)
        self.model = build_model(self.tokenizer).to(device)
        self.log = (work / "log.jsonl").open("a")
        self.report(stage="features", clips=len(self.train.mels), seconds=time.monotonic() - started)

    def report(self, **values: Any) -> None:
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})
        print(line, flush=True)
        print(line, file=self.log, flush=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    # Stage 1

    def train_encoder(self, steps: int, batch_size: int) -> None:
        tower = self.model.model.audio_tower.train()
        listener = Listener(tower.config.d_model, len(self.tokenizer)).to(self.device)
        trained = [p for p in [*tower.parameters(), *listener.parameters()] if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98))
        batches, started, total = endless(self.train, self.rng, batch_size), time.monotonic(), 0.0
        for step, indices in zip(range(steps), batches, strict=False):
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, 1e-3)
            mels, lengths = self.train.pad(indices)
            mels = spec_augment(mels, lengths, self.generator)
            loss = sum(self.listen(listener, self.train, indices, mels, lengths).values(), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            total += loss.item()
            if (step + 1) % 250 == 0:
                scores = self.hear(listener)
                seconds = time.monotonic() - started
                self.report(stage="encoder", step=step + 1, seconds=seconds, loss=total / 250, **scores)
                total = 0.0
                torch.save(tower.state_dict(), self.work / "encoder.pt")
        torch.save(tower.state_dict(), self.work / "encoder.pt")

    def listen(
        self, listener: Listener, corpus: Corpus, indices: list[int], mels: Tensor, lengths: Tensor
    ) -> dict[str, Tensor]:
        """The four losses of a batch."""
        records = [corpus.records[i] for i in indices]
        with self.autocast():
            frames, num_frames, tokens, num_tokens = encode(
                self.model.model.audio_tower, mels.to(self.device), lengths.to(self.device)
            )
            words, letters = listener.words(tokens), listener.letters(frames)
            mean = mean_token(tokens, num_tokens)
            gender, emotion = listener.gender(mean), listener.emotion(mean)
        spoken = [self.tokenizer.encode(r["transcript"], add_special_tokens=False) for r in records]
        spelled = [[LETTERS.index(c) for c in r["transcript"]] for r in records]
        genders = torch.tensor([GENDERS.index(r["gender"]) for r in records], device=self.device)
        emotions = torch.tensor([EMOTIONS.index(r["emotion"]) for r in records], device=self.device)
        return {
            "words": ctc(words, num_tokens, spoken),
            "letters": ctc(letters, num_frames, spelled),
            "gender": F.cross_entropy(gender.float(), genders),
            "emotion": F.cross_entropy(emotion.float(), emotions),
        }

    @torch.inference_mode()
    def hear(self, listener: Listener) -> dict[str, float]:
        """Word error rate of greedy CTC, gender and emotion accuracy on the dev split."""
        from jiwer import wer

        references, heard, right = [], [], {"gender": 0, "emotion": 0}
        for indices in self.dev.batches(Random(0), 50):
            mels, lengths = self.dev.pad(indices)
            with self.autocast():
                _, _, tokens, num = encode(
                    self.model.model.audio_tower, mels.to(self.device), lengths.to(self.device)
                )
                words = listener.words(tokens).argmax(-1).tolist()
                mean = mean_token(tokens, num)
                gender, emotion = listener.gender(mean).argmax(-1), listener.emotion(mean).argmax(-1)
            for row, i in enumerate(indices):
                record, best = self.dev.records[i], words[row][: int(num[row])]
                ids = [
                    t
                    for t, before in zip(best, [-1, *best], strict=False)
                    if t != before and t < len(self.tokenizer)
                ]
                references.append(record["transcript"])
                heard.append(self.tokenizer.decode(ids).strip())
                right["gender"] += GENDERS[int(gender[row])] == record["gender"]
                right["emotion"] += EMOTIONS[int(emotion[row])] == record["emotion"]
        return {"dev_wer": wer(references, heard)} | {k: v / len(references) for k, v in right.items()}

    # Stage 2

    @torch.inference_mode()
    def encode_all(self, corpus: Corpus, augment: bool) -> list[Tensor]:
        """The frozen encoder's outputs of a split, float16 [num_audio_tokens, d_model] each."""
        out: list[Tensor] = [torch.empty(0)] * len(corpus.mels)
        tower = self.model.model.audio_tower.eval()
        for indices in corpus.batches(self.rng, 64):
            mels, lengths = corpus.pad(indices)
            if augment:
                mels = spec_augment(mels, lengths, self.generator)
            with self.autocast():
                _, _, tokens, num = encode(tower, mels.to(self.device), lengths.to(self.device))
            for row, i in enumerate(indices):
                out[i] = tokens[row, : int(num[row])].half().clone()
        return out

    def train_decoder(self, steps: int, batch_size: int, dropout_from: float) -> None:
        decoder, maker = self.model.model.language_model.train(), RowMaker(self.tokenizer, self.rng)
        projector, lm_head = self.model.model.multi_modal_projector, self.model.lm_head
        trained = [p for m in (decoder, projector, lm_head) for p in m.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98))
        views = [self.encode_all(self.train, augment) for augment in (False, True, True)]
        gates = HeadDropout(decoder, self.generator)
        batches, started, total = endless(self.train, self.rng, batch_size), time.monotonic(), 0.0
        for step, indices in zip(range(steps), batches, strict=False):
            late = step >= dropout_from * steps
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, 1e-3)
            rows = [maker.draw(i, self.train.records[i], unprompted_rate=0.25, degrade=late) for i in indices]
            clips = [self.rng.choice(views)[i] for i in indices]
            gates.draw([0.5 if late and not row.unprompted else 0.0 for row in rows])
            loss = self.answer_loss(rows, clips)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            total += loss.item()
            if (step + 1) % 250 == 0:
                seconds = time.monotonic() - started
                self.report(stage="decoder", step=step + 1, seconds=seconds, loss=total / 250)
                total = 0.0
                torch.save(self.model.state_dict(), self.work / "decoder.pt")
        gates.remove()

    def answer_loss(self, rows: list[Any], clips: list[Tensor]) -> Tensor:
        """Weighted next-token loss of packed rows; ``clips``: the encoder's outputs of each row."""
        packed = pack(rows, [len(clip) for clip in clips], self.tokenizer)
        decoder = self.model.model.language_model
        heard = torch.cat([clip.float() for clip in clips]).to(self.device)
        with self.autocast():
            embeds = decoder.embed_tokens(packed.ids.to(self.device))
            audio = self.model.model.multi_modal_projector(heard)
            embeds = embeds.masked_scatter(packed.audio.to(self.device)[..., None], audio.to(embeds.dtype))
            hidden = decoder(
                inputs_embeds=embeds,
                attention_mask={"full_attention": packed.attention_mask.to(self.device)},
                position_ids=packed.position_ids.to(self.device),
                use_cache=False,
            ).last_hidden_state
            answered = packed.targets != -100
            logits = self.model.lm_head(hidden[answered.to(self.device)])
        losses = F.cross_entropy(logits.float(), packed.targets[answered].to(self.device), reduction="none")
        weights = packed.weights[answered].to(self.device)
        return (losses * weights).sum() / weights.sum()


def mean_token(tokens: Tensor, num_tokens: Tensor) -> Tensor:
    """Mean over the tokens that exist: [batch, time, width] -> [batch, width]."""
    valid = torch.arange(tokens.shape[1], device=tokens.device) < num_tokens[:, None]
    return (tokens * valid[..., None]).sum(1) / num_tokens[:, None]


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


def main(
    corpus: Annotated[Path, typer.Option(help="The corpus' folder.")] = Path("data/tiny"),
    out: Annotated[Path, typer.Option(help="The checkpoint's folder.")] = Path("lalm/tiny/checkpoint"),
    work: Annotated[Path, typer.Option(help="Folder for the log and the stages' states.")] = Path(
        "runs/pretrain"
    ),
    encoder_steps: Annotated[
        int, typer.Option(help="Steps of the encoder stage; 0 reads its saved state.")
    ] = 3500,
    decoder_steps: Annotated[
        int, typer.Option(help="Steps of the decoder stage; 0 reads its saved state.")
    ] = 1500,
    batch_size: Annotated[int, typer.Option(help="Clips a step.")] = 32,
    dropout_from: Annotated[
        float, typer.Option(help="Share of the decoder stage before head dropout.")
    ] = 0.5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and augmentation.")] = 0,
) -> None:
    """Pretrain encoder and decoder, split the heads and write the checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    run = Pretraining(corpus, work, device, seed)
    if encoder_steps:
        run.train_encoder(encoder_steps, batch_size)
    else:
        run.model.model.audio_tower.load_state_dict(torch.load(work / "encoder.pt", weights_only=True))
    if decoder_steps:
        run.train_decoder(decoder_steps, batch_size, dropout_from)
    else:
        run.model.load_state_dict(torch.load(work / "decoder.pt", weights_only=True))
    save(split_heads(run.model.cpu().eval()), run.tokenizer, out)


if __name__ == "__main__":
    typer.run(main)
