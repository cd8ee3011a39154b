"""Every answer of an evaluation, with its reference and its own scores, as JSONL."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from training.evaluate import TaskEvaluation


def write_answers(evaluations: Collection[TaskEvaluation], path: Path) -> None:
    """One JSON object a line, for every answer of every run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for evaluation in evaluations:
            for line in _lines(evaluation):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(evaluation: TaskEvaluation) -> Iterator[dict[str, Any]]:
    for run in evaluation.runs:
        single = {one.name: one.per_example for one in run.scores.measured if one.per_example is not None}
        for index, (example, answer) in enumerate(zip(evaluation.examples, run.answers, strict=True)):
            parsed = evaluation.task.parse(answer)
            yield {
                "task": evaluation.task.name,
                "condition": run.condition,
                "detail": run.detail,
                "files": [str(file) for files in example.recordings for file in files],
                "reference": example.text,
                "answer": answer,
                "result": parsed.result,
                "format_ok": parsed.format_ok,
                "scores": {name: round(float(values[index]), 4) for name, values in single.items()},
            }
