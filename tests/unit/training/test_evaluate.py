from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from lalm.errors import HeadMaskError
from lalm.family import ModelFamily
from lalm.head_mask import HeadMask, MaskFile, new_mask_file
from lalm.task import OutputKind, OutputSpec
from tests.toy import toy_waveform
from training.answer_lines import write_answers
from training.batches import AudioEmbeddings
from training.bench import Run
from training.config import TrainConfig
from training.errors import ConfigError
from training.evaluate import EvaluateOptions, TaskEvaluation, comparisons, evaluate
from training.generation import by_equal_length, generate
from training.label_scores import label_scores
from training.manifest import load_manifest
from training.metrics.measured import averaged
from training.scores import Scores
from training.table import (
    comparison_rows,
    confusion_tables,
    json_table,
    markdown_table,
    paper_table,
    rich_table,
)

MakeRecipe = Callable[..., TrainConfig]


def write_mask(config: TrainConfig, family: ModelFamily, **identity: Any) -> MaskFile:
    head_mask = HeadMask.random(15, np.random.default_rng(9), (3, 8))
    model = family.identity.model_copy(update=identity)
    mask_file = new_mask_file(config.out, config.task, model, head_mask, {"seed": 1})
    mask_file.save(config.out)
    return mask_file


@pytest.fixture
def prompts(toy_family: ModelFamily) -> list[torch.Tensor]:
    features = [
        toy_family.features(toy_waveform(seconds, seed)) for seed, seconds in enumerate((0.3, 0.9, 0.5))
    ]
    return [toy_family.embed_prompt([embeds]) for embeds in toy_family.embed_audio(features)]


def greedy_without_cache(
    family: ModelFamily, prompt: torch.Tensor, gate: torch.Tensor, steps: int
) -> list[int]:
    """Each token from the whole sequence so far."""
    ids: list[int] = []
    sequence = prompt[None]
    with torch.no_grad():
        while len(ids) < steps:
            output = family.decoder(inputs_embeds=sequence, use_cache=False, head_gate=gate)
            token = int(family.lm_head(output.last_hidden_state[0, -1]).argmax())
            if token in family.eos_token_ids:
                break
            ids.append(token)
            embedded = family.decoder.get_input_embeddings()(torch.tensor([[token]]))
            sequence = torch.cat([sequence, embedded], dim=1)
    return ids


def test_generation_is_greedy_under_the_head_mask_and_padding_changes_nothing(
    toy_family: ModelFamily, prompts: list[torch.Tensor]
) -> None:
    head_mask = HeadMask.random(12, np.random.default_rng(0), (3, 8))
    gate = torch.tensor(head_mask.heads, dtype=torch.float32)[:, None]
    expected = [greedy_without_cache(toy_family, prompt, gate, 8) for prompt in prompts]
    assert generate(toy_family, prompts, head_mask=head_mask, max_new_tokens=8) == expected
    assert generate(toy_family, prompts, head_mask=None, max_new_tokens=8) != expected


def test_the_checkpoints_own_sampling_and_penalties_are_off(
    toy_family: ModelFamily, prompts: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(toy_family, prompts, head_mask=None, max_new_tokens=8)
    own = {"do_sample": True, "temperature": 5.0, "top_k": 20, "top_p": 0.5, "repetition_penalty": 1.9}
    for name, value in own.items():
        monkeypatch.setattr(toy_family.model.generation_config, name, value)
    assert generate(toy_family, prompts, head_mask=None, max_new_tokens=8) == expected


def test_beams_find_answers_at_least_as_likely(toy_family: ModelFamily, prompts: list[torch.Tensor]) -> None:
    head_mask = HeadMask.random(12, np.random.default_rng(0), (3, 8))
    gate = torch.tensor(head_mask.heads, dtype=torch.float32)[:, None]

    def log_likelihood(prompt: torch.Tensor, ids: list[int]) -> float:
        embedded = toy_family.decoder.get_input_embeddings()(torch.tensor(ids))
        with torch.no_grad():
            sequence = torch.cat([prompt, embedded])[None]
            output = toy_family.decoder(inputs_embeds=sequence, use_cache=False, head_gate=gate)
            log_probs = toy_family.lm_head(output.last_hidden_state[0, len(prompt) - 1 : -1]).log_softmax(-1)
        return float(log_probs[torch.arange(len(ids)), ids].sum())

    greedy, beams = (
        generate(toy_family, prompts, head_mask=head_mask, max_new_tokens=3, num_beams=width)
        for width in (1, 8)
    )
    compared = [
        (log_likelihood(prompt, more), log_likelihood(prompt, one))
        for prompt, one, more in zip(prompts, greedy, beams, strict=True)
        if len(one) == len(more) == 3
    ]
    assert compared
    assert all(more >= one - 1e-4 for more, one in compared)


def test_every_condition_is_measured(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    config = make_recipe()
    write_mask(config, toy_family)
    result = evaluate(config, EvaluateOptions(num_random=3), family=toy_family)
    assert [(run.condition, run.detail) for run in result.runs] == [
        ("mask", None),
        ("instruction", "What is said?"),
        ("random", "0"),
        ("random", "1"),
        ("random", "2"),
        ("none", None),
    ]
    assert [run.num_active for run in result.runs] == [15, 24, 15, 15, 15, 24]
    assert all(len(run.answers) == 5 and set(run.metrics) == {"ifr", "acc", "f1"} for run in result.runs)
    by_name = {(run.condition, run.detail): run.answers for run in result.runs}
    assert len({by_name["mask", None], by_name["instruction", "What is said?"], by_name["none", None]}) == 3


def test_the_order_and_size_of_batches_do_not_matter(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    config = make_recipe()
    options = EvaluateOptions(conditions=("none", "instruction"), batch_size=1)
    alone = evaluate(config, options, family=toy_family)
    together = evaluate(
        config, EvaluateOptions(conditions=("none", "instruction"), batch_size=5), family=toy_family
    )
    assert {run.condition: run.answers for run in alone.runs} == {
        run.condition: run.answers for run in together.runs
    }


def test_several_instructions_are_measured_one_by_one(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    config = make_recipe().model_copy(update={"instruction": None, "instructions": ("one", "two")})
    result = evaluate(config, EvaluateOptions(conditions=("instruction",)), family=toy_family)
    assert [run.detail for run in result.runs] == ["one", "two"]


def test_the_numbers_of_the_mask_are_written_on_demand(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    config = make_recipe()
    before = write_mask(config, toy_family)
    evaluate(config, EvaluateOptions(conditions=("mask",)), family=toy_family)
    assert MaskFile.load(config.out) == before

    result = evaluate(config, EvaluateOptions(conditions=("mask",)), family=toy_family, write=True)
    after = MaskFile.load(config.out)
    assert after.model_copy(update={"evaluation": {}}) == before
    metrics = {name: round(value, 2) for name, value in result.runs[0].metrics.items()}
    assert {name: after.evaluation[name] for name in metrics} == metrics
    assert (after.evaluation["split"], after.evaluation["num_examples"]) == ("test", 5)
    assert after.evaluation["manifest_sha256"] == result.manifest_sha256


def test_a_mask_of_another_model_is_refused(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    config = make_recipe()
    write_mask(config, toy_family, fingerprint="sha256:" + "0" * 64)
    with pytest.raises(HeadMaskError, match="fingerprint"):
        evaluate(config, family=toy_family)


def test_a_split_that_is_not_given_and_numbers_that_are_not_measured(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(ConfigError, match=r"data\.test is not given"):
        evaluate(make_recipe(data={"test": None}), family=toy_family)
    with pytest.raises(ConfigError, match="not among the conditions"):
        evaluate(make_recipe(), EvaluateOptions(conditions=("none",)), family=toy_family, write=True)


def test_every_answer_is_written_with_its_reference(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    options = EvaluateOptions(conditions=("none", "instruction"), max_examples=2)
    result = evaluate(make_recipe(), options, family=toy_family)
    write_answers([result], tmp_path / "deep" / "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "deep" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert {line["condition"] for line in lines} == {"none", "instruction"}
    for line in lines:
        assert line["reference"] in ("male", "female")
        assert Path(line["files"][0]).is_file()
        assert line["format_ok"] == (line["result"]["label"] is not None)
        assert line["scores"] == {
            "ifr": 100.0 * line["format_ok"],
            "acc": 100.0 * (line["result"]["label"] == line["reference"]),
        }


@pytest.fixture
def measured(make_recipe: MakeRecipe) -> TaskEvaluation:
    def run(condition: Any, acc: float, detail: str | None = None) -> Run:
        measured = (averaged("ifr", np.array([100.0])), averaged("wer_transcript", np.array([acc])))
        return Run(condition, detail, 15, Scores(measured, {}), ("male",))

    runs = (run("mask", 98.04), run("random", 50.0, "0"), run("random", 20.0, "1"), run("none", 3.0))
    return TaskEvaluation(make_recipe().task, "test", (), "f" * 64, 24, 1, runs)


def test_the_markdown_table(measured: TaskEvaluation) -> None:
    assert markdown_table([measured]) == (
        "| Task | Metric | Active heads | Head mask | Instruction | Random masks | Neither |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| gr | IFR ↑ | 15 of 24 | 100.0 | – | 100.0 [100.0–100.0] | 100.0 |\n"
        "| gr | WER transcript ↓ | 15 of 24 | 98.0 | – | 35.0 [20.0–50.0] | 3.0 |\n"
    )


def test_the_papers_table_has_a_row_a_task(measured: TaskEvaluation) -> None:
    assert paper_table([measured]) == (
        "| Task | Metric | Active heads | Mask, no instruction | Instruction, no mask |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| gr | IFR ↑ / WER transcript ↓ | 15 of 24 | 100.00 / 98.04 | – |\n"
    )


def test_another_mask_is_compared_by_paired_bootstrap(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    config = make_recipe()
    mask_file = write_mask(config, toy_family)
    same = tmp_path / "other" / "gr.json"
    mask_file.save(same)
    options = EvaluateOptions(conditions=("mask", "instruction"), against=(same,))
    result = evaluate(config, options, family=toy_family)
    assert [run.condition for run in result.runs] == ["mask", "instruction", "other"]
    assert result.runs[2].answers == result.runs[0].answers
    by_run = {run.condition: compared for run, compared in comparisons(result, 50)}
    assert set(by_run) == {"instruction", "other"}
    assert [one.metric for one in by_run["other"]] == ["ifr", "acc", "f1"]
    assert all((one.difference, one.p_value) == (0.0, 1.0) for one in by_run["other"])
    assert "Other masks" in markdown_table([result])
    assert sum("mask minus other" in line for line in comparison_rows([result], 50)) == 3
    (record,) = json_table([result], 50)
    assert record["mask_minus"][1]["metrics"]["acc"]["p_value"] == 1.0
    low, high = record["runs"][0]["intervals"]["acc"]
    assert low <= record["runs"][0]["metrics"]["acc"] <= high


def test_a_mask_with_another_form_of_answer_is_not_compared(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    config = make_recipe()
    mask_file = write_mask(config, toy_family)
    other_task = config.task.model_copy(update={"output": OutputSpec(kind=OutputKind.TEXT)})
    mask_file.model_copy(update={"task": other_task}).save(tmp_path / "other" / "gr.json")
    with pytest.raises(ConfigError, match="another form"):
        evaluate(config, EvaluateOptions(against=(tmp_path / "other" / "gr.json",)), family=toy_family)


def test_the_probability_of_a_label_is_that_of_its_tokens_and_the_end(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    examples = load_manifest(make_recipe().data.valid, make_recipe().task).examples
    audio = AudioEmbeddings(toy_family, examples, keep=True)
    head_mask = HeadMask.random(12, np.random.default_rng(0), (3, 8))
    together = label_scores(
        toy_family, audio, ["male", "female"], head_mask=head_mask, instruction="What is said?"
    )
    gate = torch.tensor(head_mask.heads, dtype=torch.float32)[:, None]
    ids = torch.tensor(toy_family.encode_text("female"))
    with torch.no_grad():
        prompt = toy_family.embed_prompt(audio.get([3])[0], "What is said?")
        embedded = toy_family.decoder.get_input_embeddings()(ids)
        hidden = toy_family.decoder(
            inputs_embeds=torch.cat([prompt, embedded])[None], use_cache=False, head_gate=gate
        ).last_hidden_state[0]
        probabilities = toy_family.lm_head(hidden[len(prompt) - 1 :]).softmax(-1)
    expected = probabilities[-1, sorted(toy_family.eos_token_ids)].sum().log()
    expected += probabilities[torch.arange(len(ids)), ids].log().sum()
    assert together.shape == (5, 2)
    assert together[3, 1] == pytest.approx(float(expected), abs=1e-3)


def test_confusion_matrices_are_printed(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    result = evaluate(make_recipe(), EvaluateOptions(conditions=("instruction",)), family=toy_family)
    assert "| label ↓ answered → | male | female | none of them |" in confusion_tables([result])


def test_equal_lengths_share_a_batch_where_there_are_enough() -> None:
    batches = by_equal_length([5, 3, 5, 9, 5, 3, 5, 5], batch_size=4)
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    assert [0, 2, 4, 6] in batches
    assert [1, 5] in batches
    assert all(len(batch) <= 4 for batch in batches)


def test_the_table_for_a_terminal_and_for_a_script(measured: TaskEvaluation) -> None:
    console = Console(width=140, record=True, quiet=False, file=None)
    with console.capture() as capture:
        console.print(rich_table([measured]))
    assert "35.0 [20.0–50.0]" in capture.get()
    (task,) = json.loads(json.dumps(json_table([measured])))
    assert task["task"] == "gr"
    assert [run["condition"] for run in task["runs"]] == ["mask", "random", "random", "none"]
    assert task["runs"][0]["metrics"]["wer_transcript"] == 98.04
