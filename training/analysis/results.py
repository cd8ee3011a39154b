"""Regenerate docs/results.md, its figures and its records: ``python -m training.analysis.results``.

Every experiment stores its result with a digest of its inputs (weights, head masks, manifests, recipe), and
is computed again only when they have changed, or with ``--force``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from training.analysis import assessment_report, results_page
from training.analysis.curve import draw_curves
from training.analysis.experiments import Laboratory
from training.analysis.overlap import draw_layers, draw_overlap
from training.analysis.records import Records
from training.config import load_config
from training.train import load_configured_family


def main(
    recipes: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Recipes of the embedded model.")
    ],
    out: Annotated[Path, typer.Option(help="The page; records and figures go beside it.")] = Path(
        "docs/results.md"
    ),
    scratch: Annotated[Path, typer.Option(help="Folder of the trainings.")] = Path("runs/results"),
    max_examples: Annotated[int, typer.Option(min=2, help="Test examples a task.")] = 100,
    num_resamples: Annotated[int, typer.Option(min=10, help="Resamples of a bootstrap.")] = 1000,
    seeds_task: Annotated[str, typer.Option(help="Task of the seeds and of the sparsity sweep.")] = "gr",
    curve_tasks: Annotated[str, typer.Option(help="Tasks of the curves, with commas.")] = "gr,asr",
    steps: Annotated[int | None, typer.Option(help="Steps of a training, instead of the recipe's.")] = None,
    num_threads: Annotated[int, typer.Option(min=1, help="Threads of the computation.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Compute everything again.")] = False,
) -> None:
    """Measure what has changed, and write the page."""
    torch.set_num_threads(num_threads)
    overrides = {"run.num_threads": num_threads} | ({} if steps is None else {"optim.steps": steps})
    configs = [load_config(recipe, overrides) for recipe in recipes]
    folder = out.with_suffix("")
    family = load_configured_family(configs[0])
    laboratory = Laboratory(family, Records(folder, force=force), scratch, max_examples, num_resamples)
    by_task = {config.task.name: config for config in configs}
    curves = [name for name in curve_tasks.split(",") if name in by_task]
    seeded = [by_task[seeds_task]] if seeds_task in by_task else []
    results = results_page.Results(
        model=family.identity.name,
        fingerprint=family.identity.fingerprint,
        max_examples=max_examples,
        label_tasks=tuple(config.task.name for config in configs if config.task.output.labels),
        wordings=[laboratory.wordings(config) for config in configs],
        random_masks=[laboratory.random_masks(config) for config in configs],
        overlap=laboratory.overlap(configs) if len(configs) > 1 else None,
        seeds=[laboratory.seeds(config) for config in seeded],
        sparsity=[laboratory.sparsity(config) for config in seeded],
        curves=[laboratory.curve(by_task[name]) for name in curves],
    )
    _draw(results, folder)
    out.write_text(results_page.page(results, folder.name), encoding="utf-8")
    typer.echo(str(out))


def _draw(results: results_page.Results, folder: Path) -> None:
    assessment_report.draw(results.wordings, folder / "wordings.png")
    if results.overlap is not None:
        draw_overlap(results.overlap, folder / "overlap.png")
        draw_layers(results.overlap, folder / "layers.png")
    if results.curves:
        draw_curves(results.curves, folder / "curves.png")


if __name__ == "__main__":
    typer.run(main)
