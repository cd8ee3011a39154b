"""The paper's findings as experiments on the embedded model, each with what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lalm.family import ModelFamily
from lalm.head_mask import MaskFile
from training.analysis.curve import curve_record, head_counts
from training.analysis.masks import NamedMask, load_masks, run_logits
from training.analysis.overlap import intersection, overlap_record, seeds_record
from training.analysis.records import Record, Records
from training.bench import Bench, Plan
from training.config import TrainConfig
from training.evaluate import EvaluateOptions, evaluate, load_mask, split_manifest
from training.sensitivity import assess, assessment_record
from training.table import json_table
from training.tiny.segments import INSTRUCTIONS
from training.train import subset, train
from training.wordings import Wording, load_wordings

SEEDS = (0, 1, 2)
LAMBDAS = (0.0, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Laboratory:
    """What the experiments share: the model, the stored results, how many examples, and a scratch folder."""

    family: ModelFamily
    records: Records
    scratch: Path
    max_examples: int
    num_resamples: int = 1000
    num_random: int = 5

    def wordings(self, config: TrainConfig) -> Record:
        """The task under the wordings the model was pretrained with and others, against its head mask."""
        seen = dict.fromkeys((*config.all_instructions, *INSTRUCTIONS.get(config.task.name, ())))
        unseen = [text for text in load_wordings().get(config.task.name, ()) if text not in seen]
        tried = [*(Wording(text, "seen") for text in seen), *(Wording(text, "unseen") for text in unseen)]
        inputs = {**self._inputs(config), "wordings": [[one.text, one.origin] for one in tried]}

        def compute() -> Record:
            options = EvaluateOptions(max_examples=self.max_examples)
            found = assess(config, tried, options, family=self.family, num_resamples=self.num_resamples)
            return assessment_record(found, self.num_resamples)

        return self.records.get(f"wordings-{config.task.name}", inputs, compute)

    def random_masks(self, config: TrainConfig) -> Record:
        """The head mask against random ones of its size, and against neither mask nor instruction."""
        inputs = {**self._inputs(config), "num_random": self.num_random}
        options = EvaluateOptions(
            conditions=("mask", "random", "none"), num_random=self.num_random, max_examples=self.max_examples
        )

        def compute() -> Record:
            found = evaluate(config, options, family=self.family)
            return json_table([found], self.num_resamples)[0]

        return self.records.get(f"random-{config.task.name}", inputs, compute)

    def overlap(self, configs: Sequence[TrainConfig]) -> Record:
        """Overlap of all tasks' head masks."""
        paths = [config.out for config in configs]
        inputs = {str(path): MaskFile.load(path).head_mask.sha256 for path in paths}
        return self.records.get("overlap", inputs, lambda: overlap_record(load_masks(paths)))

    def seeds(self, config: TrainConfig) -> Record:
        """One head mask a seed: how they differ, what each scores, and what their intersection scores."""
        trained = [self._variant(config, f"seed-{seed}", {"seed": seed}, {}) for seed in SEEDS]
        inputs = {"trainings": [self._training_inputs(one) for one in trained], **self._test_inputs(config)}

        def compute() -> Record:
            masks = [
                NamedMask(f"seed {seed}", config.task.name, self._trained(one).head_mask)
                for seed, one in zip(SEEDS, trained, strict=True)
            ]
            scores = {mask.name: self._score(config, mask) for mask in masks}
            common = intersection(masks)
            if common.num_active:
                scores["all in common"] = self._score(config, NamedMask("common", "", common))
            return {"task": config.task.name, **seeds_record(masks), "scores": scores}

        return self.records.get(f"seeds-{config.task.name}", inputs, compute)

    def sparsity(self, config: TrainConfig) -> Record:
        """One head mask a lambda, without a target number of heads."""
        trained = [
            self._variant(
                config, f"lambda-{value:g}", {}, {"sparsity_lambda": value, "target_num_heads": None}
            )
            for value in LAMBDAS
        ]
        inputs = {"trainings": [self._training_inputs(one) for one in trained], **self._test_inputs(config)}

        def compute() -> Record:
            points = []
            for value, one in zip(LAMBDAS, trained, strict=True):
                head_mask = self._trained(one).head_mask
                metrics = self._score(config, NamedMask(f"lambda {value:g}", "", head_mask))
                points.append({"lambda": value, "num_active": head_mask.num_active, "metrics": metrics})
            total = self.family.identity.num_layers * self.family.identity.num_heads
            return {"task": config.task.name, "num_heads": total, "points": points}

        return self.records.get(f"sparsity-{config.task.name}", inputs, compute)

    def curve(self, config: TrainConfig) -> Record:
        """The score against the number of heads in the order of the logits of a training by the recipe."""
        trained = self._variant(config, "curve", {}, {})
        inputs = {"training": self._training_inputs(trained), **self._test_inputs(config)}

        def compute() -> Record:
            head_mask = self._trained(trained).head_mask
            logits = run_logits(trained.run_folder)
            counts = head_counts(head_mask.num_active, head_mask.total)
            with Progress(console=Console(stderr=True)) as progress:
                return curve_record(config.task.name, self._bench(config, progress), logits, counts)

        return self.records.get(f"curve-{config.task.name}", inputs, compute)

    def _variant(
        self, config: TrainConfig, name: str, run: dict[str, Any], optim: dict[str, Any]
    ) -> TrainConfig:
        folder = self.scratch / f"{config.task.name}-{name}"
        return config.model_copy(
            update={
                "out": folder / config.out.name,
                "data": config.data.model_copy(update={"cache_folder": self.scratch / "audio"}),
                "run": config.run.model_copy(update={"folder": folder, "seeds": (), **run}),
                "optim": config.optim.model_copy(update=optim),
            }
        )

    def _trained(self, config: TrainConfig) -> MaskFile:
        train(config, family=self.family)
        return MaskFile.load(config.out)

    def _score(self, config: TrainConfig, mask: NamedMask) -> dict[str, float]:
        with Progress(console=Console(stderr=True)) as progress:
            return self._bench(config, progress).run(Plan("other", mask.name, mask.head_mask)).metrics

    def _bench(self, config: TrainConfig, progress: Progress) -> Bench:
        examples = subset(split_manifest(config, "test").examples, self.max_examples)
        return Bench(config, self.family, tuple(examples), progress)

    def _test_inputs(self, config: TrainConfig) -> Record:
        manifest = split_manifest(config, "test")
        return {
            "fingerprint": self.family.identity.fingerprint,
            "test_manifest_sha256": manifest.sha256,
            "max_examples": self.max_examples,
            "text_metric": config.text_metric,
        }

    def _inputs(self, config: TrainConfig) -> Record:
        head_mask = load_mask(config, config.out, self.family).head_mask
        return {
            **self._test_inputs(config),
            "head_mask_sha256": head_mask.sha256,
            "num_resamples": self.num_resamples,
        }

    def _training_inputs(self, config: TrainConfig) -> Record:
        manifests = [split_manifest(config, "train")]
        if config.data.valid is not None:
            manifests.append(split_manifest(config, "valid"))
        limits = config.data.model_dump(mode="json", include={"max_train_examples", "max_valid_examples"})
        return {
            "task": config.task.model_dump(mode="json"),
            "optim": config.optim.model_dump(mode="json"),
            "seed": config.run.seed,
            "valid_every": config.run.valid_every,
            "select_by": config.run.select_by,
            **limits,
            "manifests_sha256": [manifest.sha256 for manifest in manifests],
        }
