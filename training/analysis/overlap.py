"""How alike head masks are: overlap, what chance would give, clusters, layers, and seeds of one task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from lalm.head_mask import HeadMask
from training.analysis.figures import new_axes, save
from training.analysis.masks import NamedMask
from training.table import markdown

Matrix = NDArray[np.float64]
Record = dict[str, Any]


def jaccard(one: HeadMask, other: HeadMask) -> float:
    """Heads active in both by heads active in either; 1 for two empty masks."""
    either = int((one.heads | other.heads).sum())
    return int((one.heads & other.heads).sum()) / either if either else 1.0


def jaccard_by_chance(one: HeadMask, other: HeadMask) -> float:
    """What two random head masks of these sizes have on average, to first order."""
    both = one.num_active * other.num_active / one.total
    either = one.num_active + other.num_active - both
    return both / either if either else 1.0


def overlap_record(masks: Sequence[NamedMask]) -> Record:
    """Sizes, active heads by layer, overlap of each pair, and an order in which like ones stand together."""
    matrix = np.array([[jaccard(one.head_mask, two.head_mask) for two in masks] for one in masks])
    return {
        "names": [mask.name for mask in masks],
        "num_heads": masks[0].head_mask.total,
        "active_heads": [mask.head_mask.num_active for mask in masks],
        "active_by_layer": [mask.head_mask.heads.sum(axis=1).tolist() for mask in masks],
        "heads_per_layer": masks[0].head_mask.num_heads,
        "jaccard": matrix.tolist(),
        "by_chance": [[jaccard_by_chance(one.head_mask, two.head_mask) for two in masks] for one in masks],
        "order": _clustered(matrix),
    }


def seeds_record(masks: Sequence[NamedMask]) -> Record:
    """Masks of one task from several seeds: each pair's differing heads, and what all have in common."""
    total = masks[0].head_mask.total
    pairs = [
        {
            "names": [one.name, two.name],
            "num_differing": int((one.head_mask.heads ^ two.head_mask.heads).sum()),
            "share_differing": float((one.head_mask.heads ^ two.head_mask.heads).sum() / total),
            "jaccard": jaccard(one.head_mask, two.head_mask),
            "by_chance": jaccard_by_chance(one.head_mask, two.head_mask),
        }
        for one, two in combinations(masks, 2)
    ]
    return {
        "names": [mask.name for mask in masks],
        "num_heads": total,
        "active_heads": [mask.head_mask.num_active for mask in masks],
        "num_in_all": int(np.logical_and.reduce([mask.head_mask.heads for mask in masks]).sum()),
        "num_in_any": int(np.logical_or.reduce([mask.head_mask.heads for mask in masks]).sum()),
        "pairs": pairs,
    }


def intersection(masks: Sequence[NamedMask]) -> HeadMask:
    """The heads that are active in all of them."""
    return HeadMask(np.logical_and.reduce([mask.head_mask.heads for mask in masks]))


def pairs_table(record: Record, num_pairs: int = 5) -> str:
    """The pairs that overlap most and least, against what chance gives masks of their sizes."""
    names, matrix, chance = record["names"], record["jaccard"], record["by_chance"]
    pairs = sorted(combinations(range(len(names)), 2), key=lambda pair: -matrix[pair[0]][pair[1]])
    shown = pairs if len(pairs) <= 2 * num_pairs else pairs[:num_pairs] + pairs[-num_pairs:]
    rows = [(f"{names[a]}, {names[b]}", f"{matrix[a][b]:.3f}", f"{chance[a][b]:.3f}") for a, b in shown]
    return markdown(("Pair", "Jaccard", "By chance"), rows, 1)


def seeds_table(record: Record) -> str:
    """How many heads each pair of seeds does not share."""
    rows = [
        (
            ", ".join(pair["names"]),
            f"{pair['num_differing']} ({100 * pair['share_differing']:.1f} %)",
            f"{pair['jaccard']:.3f}",
            f"{pair['by_chance']:.3f}",
        )
        for pair in record["pairs"]
    ]
    return markdown(("Seeds", "Differing heads", "Jaccard", "By chance"), rows, 1)


def draw_overlap(record: Record, path: Path) -> None:
    """The overlap matrix as a heat map, in the clustered order."""
    order = record["order"]
    names = [f"{record['names'][at]} ({record['active_heads'][at]})" for at in order]
    matrix = np.array(record["jaccard"])[np.ix_(order, order)]
    size = 2.8 + 0.55 * len(names)
    figure, axes = new_axes(size + 0.8, size)
    image = axes.imshow(matrix, cmap="viridis", vmax=1.0)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    middle = (matrix.min() + matrix.max()) / 2
    for (row, column), value in np.ndenumerate(matrix):
        colour = "black" if value > middle else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, label="Jaccard overlap of active heads", shrink=0.8)
    save(figure, path)


def draw_layers(record: Record, path: Path) -> None:
    """The share of active heads in each layer, a line a mask."""
    figure, axes = new_axes(7.0, 4.2)
    for name, by_layer in zip(record["names"], record["active_by_layer"], strict=True):
        share = 100 * np.array(by_layer) / record["heads_per_layer"]
        axes.plot(range(len(share)), share, marker="o", markersize=3, label=name)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("active heads, %")
    axes.grid(color="0.9")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    save(figure, path)


def _clustered(matrix: Matrix) -> list[int]:
    """Average linkage of 1 - overlap, leaves in the best order."""
    if len(matrix) < 3:
        return list(range(len(matrix)))
    distances = np.clip(1 - matrix, 0, None)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
