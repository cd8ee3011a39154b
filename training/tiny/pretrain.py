"""Pretrain the embedded model: ``python -m training.tiny.pretrain``.

Two stages (`encoder_stage`, `decoder_stage`). Last, every head of the decoder is split into finer ones; the
function stays the same. Head masks are never known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.tiny.decoder_stage import DecoderStage
from training.tiny.encoder_stage import EncoderStage
from training.tiny.model import save, split_heads
from training.tiny.run import Run


def main(
    corpus: Annotated[Path, typer.Option(help="The corpus' folder.")] = Path("data/tiny"),
    out: Annotated[Path, typer.Option(help="The checkpoint's folder.")] = Path("lalm/tiny/checkpoint"),
    work: Annotated[Path, typer.Option(help="Folder for the log and the stages' states.")] = Path(
        "runs/pretrain"
    ),
    encoder_steps: Annotated[
        int, typer.Option(help="Steps of the encoder stage; 0 reads its saved state.")
    ] = 6000,
    decoder_steps: Annotated[
        int, typer.Option(help="Steps of the decoder stage; 0 reads its saved state.")
    ] = 2000,
    batch_size: Annotated[int, typer.Option(help="Clips a step.")] = 32,
    dropout_from: Annotated[
        float, typer.Option(help="Share of the decoder stage before head dropout.")
    ] = 0.5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and augmentation.")] = 0,
) -> None:
    """Pretrain encoder and decoder, split the heads and write the checkpoint."""
    run = Run(corpus, work, device, seed)
    encoder, decoder = EncoderStage(run), DecoderStage(run)
    if encoder_steps:
        encoder.train(encoder_steps, batch_size)
    elif decoder_steps:
        encoder.load()
    if decoder_steps:
        decoder.train(decoder_steps, batch_size, dropout_from)
    else:
        decoder.load()
    save(split_heads(run.model.cpu().eval()), run.tokenizer, out)


if __name__ == "__main__":
    typer.run(main)
