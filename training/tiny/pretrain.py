"""Pretrain the embedded model: ``python -m training.tiny.pretrain``.

Two stages (`encoder_stage`, `decoder_stage`), on the corpus and more overlaps of its speakers (`overlaps`).
``--orders`` adds recorded coffee orders (`orders`), which the encoder transcribes when it has learnt to, and
goes on learning with. Last, every head of the decoder is split into finer ones; the function stays the same.
Head masks are never known here.

``--start-from`` goes on from a finished checkpoint. With ``--decoder-steps 0`` everything behind its encoder
stays as it is, so that its head masks, which were trained on that, go on being good starts.
``--new-encoder`` puts a new encoder in front of it, which learns from the old one, with the orders from its
first step on (there are no ``--order-steps`` then). With ``--together`` the decoder learns along.
``--pair-steps`` come before the decoder's others, together with the encoder or alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from training.tiny.decoder_stage import DecoderStage
from training.tiny.digits import is_spoken_by_people
from training.tiny.encoder_stage import EncoderStage
from training.tiny.model import save, split_heads
from training.tiny.orders import transcribed_orders
from training.tiny.overlaps import overlapped
from training.tiny.run import Run
from training.tiny.speakers import SpeakerBatches

ORDER_REPEATS = 8  # of each recorded order in a pass over the corpus
DIGIT_REPEATS = 4  # of each recorded digit then, beside the one that the corpus has
OVERLAP_SHARE = 0.16  # of the train split: overlaps that it has beside the corpus' own
LISTENER_STEPS = 300  # of the layers that train the encoder, where it is trained already
CLIPS_PER_SPEAKER = 8  # for what speakers and emotions are told apart by


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
        int, typer.Option(help="Steps of the decoder stage; 0 reads its saved state, or leaves it as it is.")
    ] = 2000,
    decoder_rate: Annotated[float, typer.Option(help="Peak learning rate of the decoder stage.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Clips a step.")] = 32,
    dropout_from: Annotated[
        float, typer.Option(help="Share of the decoder stage before head dropout.")
    ] = 0.5,
    pair_steps: Annotated[
        int,
        typer.Option(
            help="First steps of the decoder, on pairs of speakers alone; the projector then passes on what "
            "tells them, and emotions, apart."
        ),
    ] = 0,
    encoder_rate: Annotated[float, typer.Option(help="Peak learning rate of the encoder stage.")] = 1e-3,
    start_from: Annotated[
        Path | None,
        typer.Option(
            help="Finished checkpoint to go on from; its encoder then learns by its decoder's answers too."
        ),
    ] = None,
    new_encoder: Annotated[
        bool,
        typer.Option("--new-encoder", help="With --start-from: a new encoder learns from the checkpoint's."),
    ] = False,
    together: Annotated[
        bool,
        typer.Option("--together", help="With --start-from: the decoder learns along with the encoder."),
    ] = False,
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
    if ((new_encoder or together) and start_from is None) or (new_encoder and resume):
        raise typer.BadParameter("--new-encoder and --together need --start-from; --new-encoder no --resume")
    run = Run(corpus, work, device, seed, half=half, checkpoint=start_from)
    overlaps = overlapped(run.train, round(OVERLAP_SHARE * len(run.train.records)), run.rng_of("overlaps"))
    run.train = run.train.with_more(overlaps, 1)
    encoder, decoder = EncoderStage(run), DecoderStage(run)
    if resume_decoder or not (decoder_steps or start_from):
        decoder.load()
    if resume or not (encoder_steps or start_from):
        encoder.load()
    if start_from and (encoder_steps or orders):
        encoder.train_listener(0 if resume else LISTENER_STEPS, batch_size)
        _fit_listener(run, encoder, decoder, pair_steps if together else 0)
    answering = decoder if start_from else None
    if new_encoder:
        _add_people(run, encoder, orders)
        encoder.renew()
    if encoder_steps:
        encoder.train(encoder_steps, batch_size, encoder_rate, answering, together=together)
    if orders and not new_encoder:
        _add_people(run, encoder, orders)
        encoder.train(order_steps, batch_size, order_rate, answering, together=together)
    if decoder_steps:
        if pair_steps and not together:
            _fit_listener(run, encoder, decoder, pair_steps)
        decoder.train(decoder_steps, batch_size, decoder_rate, dropout_from)
    save(split_heads(run.model.cpu().eval()), run.tokenizer, out)


def _fit_listener(run: Run, encoder: EncoderStage, decoder: DecoderStage, pair_steps: int) -> None:
    """Fit what speakers and emotions are told apart by to the encoder and, with `pair_steps`, have the
    projector pass it on and the decoder compare speakers by it."""
    some = run.train.part(SpeakerBatches(run.train, run.rng).some_of_each(CLIPS_PER_SPEAKER))
    if not some.records:
        return
    heard = decoder.encode_all(some, augmented=False)
    means = torch.stack([clip.float().mean(0) for clip in heard]).to(run.device)
    listener = encoder.fit_listener(some.records, means)
    if pair_steps:
        listener.pass_on(run.model.model.multi_modal_projector.linear, means)
        decoder.compare(some, heard, pair_steps)


def _add_people(run: Run, encoder: EncoderStage, folder: Path | None) -> None:
    """Have recorded orders, as the encoder hears them, in the train split from now on, and more of its
    recorded digits."""
    if folder is None:
        return
    orders = transcribed_orders(folder, encoder, run.seed)
    digits = run.train.part([i for i, record in enumerate(run.train.records) if is_spoken_by_people(record)])
    run.train = run.train.with_more(orders, ORDER_REPEATS).with_more(digits, DIGIT_REPEATS)
    run.report(stage="orders", transcribed=len(orders.records), digits=len(digits.records))


if __name__ == "__main__":
    typer.run(main)
