"""The command `prepare`: a public corpus, as it was unpacked, to manifests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from training.corpora.entries import Entry

prepare = typer.Typer(
    no_args_is_help=True,
    help="Write the manifests of a public corpus: OUT/<split>/<task>.jsonl.",
    rich_markup_mode=None,
)

_Root = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Where the corpus was unpacked.")]
_Out = Annotated[Path | None, typer.Option("--out", file_okay=False, help="[default: data/<corpus>]")]


@prepare.command("librispeech")
def librispeech(root: _Root, out: _Out = None) -> None:
    """LibriSpeech: asr, gr, asr-gr, gr-asr, asr-gr-json."""
    from training.corpora import librispeech as corpus

    _write(corpus.read(root), out or Path("data/librispeech"))


@prepare.command("iemocap")
def iemocap(root: _Root, out: _Out = None) -> None:
    """IEMOCAP: ser; Session 5 is the test split, Session 4 the development split."""
    from training.corpora import iemocap as corpus

    _write(corpus.read(root), out or Path("data/iemocap"))


@prepare.command("voxceleb1")
def voxceleb1(
    root: _Root,
    out: _Out = None,
    train_pairs: Annotated[int, typer.Option(min=1, help="Pairs drawn for training.")] = 20_000,
    dev_pairs: Annotated[int, typer.Option(min=1, help="Pairs drawn for development.")] = 1_000,
) -> None:
    """VoxCeleb1: asv, pairs of recordings; the published trials are the test split."""
    from training.corpora import voxceleb1 as corpus

    pairs = corpus.read(root, num_train_pairs=train_pairs, num_dev_pairs=dev_pairs)
    _write(pairs, out or Path("data/voxceleb1"))


@prepare.command("covost2")
def covost2(
    root: _Root,
    out: _Out = None,
    language: Annotated[str, typer.Option(help="The language English is translated into.")] = "de",
) -> None:
    """CoVoST 2: s2tt, English speech to another language."""
    from training.corpora import covost2 as corpus

    _write(corpus.read(root, language=language), out or Path("data/covost2"))


@prepare.command("audiocaps")
def audiocaps(root: _Root, out: _Out = None) -> None:
    """AudioCaps: aac."""
    from training.corpora import audiocaps as corpus

    _write(corpus.read(root), out or Path("data/audiocaps"))


@prepare.command("libri2mix")
def libri2mix(
    root: _Root,
    librispeech: Annotated[
        Path, typer.Option("--librispeech", exists=True, file_okay=False, help="LibriSpeech, for the texts.")
    ],
    out: _Out = None,
    mode: Annotated[Literal["max", "min"], typer.Option(help="To the longer or the shorter end.")] = "max",
    mix: Annotated[
        Literal["mix_clean", "mix_both"], typer.Option(help="Without or with noise.")
    ] = "mix_clean",
) -> None:
    """Libri2Mix: osr, two overlapping speakers."""
    from training.corpora import libri2mix as corpus

    _write(corpus.read(root, texts=librispeech, mode=mode, mix=mix), out or Path("data/libri2mix"))


def _write(entries: Iterable[Entry], out: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from training.corpora.entries import write_manifests

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("recordings", total=None)
        counts = write_manifests(entries, out, on_file=lambda: progress.advance(bar))
    for name, count in sorted(counts.items()):
        typer.echo(f"{count:>8}  {name if name.startswith('left out') else out / f'{name}.jsonl'}")
