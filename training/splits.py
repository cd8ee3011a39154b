"""The examples of a recipe: read from manifests or feedback folders, limited, and held out for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lalm.task import TaskSpec
from training.config import TrainConfig
from training.errors import ManifestError
from training.manifest import Example, Manifest, load_manifest


def load_splits(config: TrainConfig) -> dict[str, Manifest]:
    """What the recipe trains on ("train"), selects by ("valid") and, where it says so, refines by ("dev").

    Raises:
        ManifestError: a manifest cannot be used, or there is too little to hold anything out.
    """
    data, task = config.data, config.task
    train = load_any(data.train, task, data.task)
    if data.valid is not None:
        valid = load_any(data.valid, task, data.task)
    else:
        train, valid = hold_out(train, data.valid_fraction)
    splits = {
        "train": _limited(train, data.max_train_examples),
        "valid": _limited(valid, data.max_valid_examples),
    }
    if config.refine is not None and config.refine.dev is not None:
        dev = load_any(config.refine.dev, task, data.task)
        splits["dev"] = _limited(dev, config.refine.max_dev_examples)
    return splits


def load_any(path: Path, task: TaskSpec, task_in_manifest: str | None = None) -> Manifest:
    """A manifest; of a folder, what its manifests (*.jsonl) have of this task.

    Raises:
        ManifestError: a manifest cannot be used, or the folder has nothing of this task.
    """
    if not path.is_dir():
        return load_manifest(path, task, task_in_manifest)
    parts = [
        load_manifest(file, task, task_in_manifest, skip_others=True) for file in sorted(path.glob("*.jsonl"))
    ]
    examples = tuple(example for part in parts for example in part.examples)
    if not examples:
        name = task_in_manifest or task.name
        raise ManifestError(path, None, f"no manifest (*.jsonl) in it has an annotation of task {name!r}")
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode())
    return Manifest(path, digest.hexdigest(), examples)


def hold_out(manifest: Manifest, fraction: float) -> tuple[Manifest, Manifest]:
    """Split into training and validation data, always alike; a recording is in one of them only.

    Raises:
        ManifestError: fewer than two recordings.
    """
    groups: dict[object, list[Example]] = {}
    for example in manifest.examples:
        groups.setdefault(example.recordings, []).append(example)
    if len(groups) < 2:
        raise ManifestError(manifest.path, None, "one recording is too little to hold out validation data")
    order = np.random.default_rng(0).permutation(len(groups))
    num_valid = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    held_out = set(order[:num_valid].tolist())
    parts: tuple[list[Example], list[Example]] = ([], [])
    for number, group in enumerate(groups.values()):
        parts[number in held_out].extend(group)
    train, valid = (Manifest(manifest.path, manifest.sha256, tuple(part)) for part in parts)
    return train, valid


def _limited(manifest: Manifest, limit: int | None) -> Manifest:
    """The manifest with at most `limit` examples."""
    return Manifest(manifest.path, manifest.sha256, tuple(subset(manifest.examples, limit)))


def subset(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """At most `limit` examples, always the same ones, spread over the whole manifest."""
    if limit is None or len(examples) <= limit:
        return examples
    chosen = np.random.default_rng(0).permutation(len(examples))[:limit]
    return [examples[index] for index in sorted(chosen)]
