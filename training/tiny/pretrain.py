"""Pretrain the embedded model: ``python -m training.tiny.pretrain``.

Two stages (`encoder_stage`, `decoder_stage`). ``--orders`` adds recorded coffee orders (`orders`), which the
encoder transcribes when it has learnt to, and goes on learning with. Last, every head of the decoder is split
into finer ones; the function stays the same. Head masks are never known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.tiny.decoder_stage import DecoderStage
from training.tiny.encoder_stage import EncoderStage
from training.tiny.model import save, split_heads
from training.tiny.orders import transcribed_orders
from training.tiny.run import Run

ORDER_REPEATS = 4  # of each recorded order in a pass over the corpus


def main(
    corpus: Annotated[Path, typer.Option(help="The corpus' folder.")] = Path("data/tiny"),
    out: Annotated[Path, typer.Option(help="The checkpoint's folder.")] = Path("lalm/tiny/checkpoint"),
    work: Annotated[Path, typer.Option(help="Folder for the log and the stages' states.")] = Path(
        "runs/pretrain"
    ),
    encoder_steps: Annotated[
        int, typer.Option(help="Steps of the encoder stage; 0 reads its saved state.")
    ] = 6000,
    orders: Annotated[
        Path | None, typer.Option(help="Folder of recorded coffee orders with labels.json, to train on too.")
    ] = None,
    order_steps: Annotated[int, typer.Option(help="Steps of the encoder with the orders.")] = 1500,
    order_rate: Annotated[float, typer.Option(help="Peak learning rate of these steps.")] = 3e-4,
    decoder_steps: Annotated[
        int, typer.Option(help="Steps of the decoder stage; 0 reads its saved state.")
    ] = 2000,
    batch_size: Annotated[int, typer.Option(help="Clips a step.")] = 32,
    dropout_from: Annotated[
        float, typer.Option(help="Share of the decoder stage before head dropout.")
    ] = 0.5,
    pair_steps: Annotated[
        int, typer.Option(help="First steps of the decoder stage, on pairs of speakers alone.")
    ] = 0,
    encoder_rate: Annotated[float, typer.Option(help="Peak learning rate of the encoder stage.")] = 1e-3,
    encoder_from: Annotated[
        Path | None, typer.Option(help="Checkpoint whose audio encoder is where the encoder stage starts.")
    ] = None,
    encoder_out: Annotated[
        Path | None, typer.Option(help="Folder for the encoder alone, which --encoder-from reads.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="The encoder stage goes on from its saved state.")
    ] = False,
    resume_decoder: Annotated[
        bool, typer.Option("--resume-decoder", help="The decoder stage goes on from its saved state.")
    ] = False,
    half: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and augmentation.")] = 0,
) -> None:
    """Pretrain encoder and decoder, split the heads and write the checkpoint."""
    run = Run(corpus, work, device, seed, half=half)
    encoder, decoder = EncoderStage(run), DecoderStage(run)
    if resume_decoder:
        decoder.load()
    if encoder_from is not None:
        encoder.start_from(encoder_from)
    if resume or not encoder_steps:
        encoder.load()
    if encoder_steps:
        encoder.train(encoder_steps, batch_size, encoder_rate)
    if orders is not None:
        more = transcribed_orders(orders, encoder, seed)
        run.train = run.train.with_more(more, ORDER_REPEATS)
        run.report(stage="orders", transcribed=len(more.records))
        encoder.train(order_steps, batch_size, order_rate)
    if encoder_out is not None:
        encoder.write(encoder_out)
    if decoder_steps:
        decoder.train(decoder_steps, batch_size, dropout_from, pair_steps)
    else:
        decoder.load()
    save(split_heads(run.model.cpu().eval()), run.tokenizer, out)


if __name__ == "__main__":
    typer.run(main)
