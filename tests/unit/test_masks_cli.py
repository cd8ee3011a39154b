"""`ahamask masks import`, `export`, `diff`, `combine` and `random`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lalm.head_mask import MaskFile
from lalm.mask_algebra import Rule, combine
from lalm.published_mask import logits_for, write_mask_logits
from tests.command_line import Cli
from tests.mask_files import identity, mask_file, random_mask

SHAPE = (3, 8)  # of the toy checkpoint
NAMES = {"asr_librispeech": "asr", "gender_librispeech": "gr", "asr_gender_json_librispeech": "asr-gr-json"}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder of published masks, 10, 11 and 12 active heads."""
    for seed, name in enumerate(NAMES):
        head_mask = random_mask(10 + seed, SHAPE, seed)
        write_mask_logits(tmp_path / "published" / name / "checkpoint.pth", logits_for(head_mask))
    return tmp_path / "published"


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Three seeds of one task."""
    for seed in range(3):
        mask_file("asr", random_mask(16, SHAPE, seed)).save(tmp_path / f"seed{seed}" / "asr.json")
    return tmp_path


def test_a_folder_of_published_masks_becomes_mask_files_of_the_model(
    cli: Cli, published: Path, tmp_path: Path, toy_checkpoint: Path
) -> None:
    out = tmp_path / "masks"
    code, said, err = cli("masks", "import", published, "--model", toy_checkpoint, "--out", out, "--json")
    assert (code, err) == (0, "")
    assert sorted(path.stem for path in out.iterdir()) == sorted(NAMES.values())
    counts = {record["task"]: record["active_heads"] for record in map(json.loads, said.splitlines())}
    assert counts == {"asr": 10, "gr": 11, "asr-gr-json": 12}
    assert MaskFile.load(out / "asr.json").head_mask == random_mask(10, SHAPE, 0)
    code, said, _ = cli("masks", "verify", out, "--model", toy_checkpoint)
    assert code == 0
    assert said.count(": ok") == 3


def test_the_model_must_fit(cli: Cli, published: Path, tmp_path: Path, toy_checkpoint: Path) -> None:
    out = tmp_path / "masks"
    code, _, err = cli("masks", "import", published, "--out", out)
    assert code == 1
    assert "has 27 logits, the model needs 1028" in err
    code, _, err = cli(
        "masks", "import", published, "--model", toy_checkpoint, "--out", out, "--fingerprint", "sha256:00"
    )
    assert code == 1
    assert "not sha256:00" in err
    assert not out.exists()


def test_another_mask_file_can_stand_for_the_model(cli: Cli, published: Path, masks: Path) -> None:
    like, out = masks / "seed0" / "asr.json", masks / "out"
    assert cli("masks", "import", published, "--like", like, "--out", out)[0] == 0
    assert MaskFile.load(out / "gr.json").model == identity(*SHAPE)


def test_tasks_are_given_where_names_tell_nothing(cli: Cli, published: Path, masks: Path) -> None:
    like, out = ("--like", masks / "seed0" / "asr.json"), ("--out", masks / "out")
    source = published / "gender_librispeech" / "checkpoint.pth"
    (published / "gender_librispeech").rename(published / "mystery")
    source = published / "mystery" / "checkpoint.pth"
    code, _, err = cli("masks", "import", published, *like, *out)
    assert code == 1
    assert "'mystery' tells no task" in err
    assert not (masks / "out").exists()
    assert cli("masks", "import", source, *like, *out, "--task", "ser", "--labels", "calm, upset")[0] == 0
    assert MaskFile.load(masks / "out" / "ser.json").task.output.labels == ("calm", "upset")
    tasks = masks / "tasks.toml"
    tasks.write_text(
        '[mystery]\nname = "odd"\ntitle = "Odd"\nmax_new_tokens = 3\noutput = {kind = "text"}\n'
        "[asr_librispeech]\nmax_new_tokens = 77\n"
    )
    assert cli("masks", "import", published, *like, *out, "--tasks", tasks)[0] == 0
    assert MaskFile.load(masks / "out" / "odd.json").task.title == "Odd"
    assert MaskFile.load(masks / "out" / "asr.json").task.max_new_tokens == 77


def test_a_table_for_a_folder_that_is_not_there_is_an_error(cli: Cli, published: Path, masks: Path) -> None:
    tasks, out = masks / "tasks.toml", masks / "out"
    tasks.write_text("[asr_librispeech]\nmax_new_tokens = 77\n[asr_libri]\nmax_new_tokens = 5\n[ser]\n")
    options = ("--like", masks / "seed0" / "asr.json", "--out", out, "--tasks", tasks)
    code, _, err = cli("masks", "import", published, *options)
    assert code == 1
    assert f"{tasks}: no mask to import for asr_libri, ser; there are {', '.join(sorted(NAMES))}" in err
    assert not out.exists()


def test_two_masks_for_one_task_are_not_guessed_between(cli: Cli, published: Path, masks: Path) -> None:
    (published / "gender_librispeech").rename(published / "asr_other")
    code, _, err = cli(
        "masks", "import", published, "--like", masks / "seed0" / "asr.json", "--out", masks / "out"
    )
    assert code == 2
    assert "several masks for task 'asr'" in err


@pytest.mark.parametrize("option", ["--task", "--labels"])
def test_options_for_one_file_do_not_fit_a_folder(cli: Cli, published: Path, option: str) -> None:
    code, _, err = cli("masks", "import", published, option, "gr")
    assert code == 2
    assert "are for one file, not for 3" in err


def test_files_are_replaced_only_by_force(cli: Cli, masks: Path) -> None:
    path = masks / "seed0" / "asr.json"
    for arguments in (
        ("export", path, "--out", masks / "a.pth"),
        ("random", "--like", path, "--out", masks / "r" / "asr.json"),
        ("combine", "--or", path, masks / "seed1" / "asr.json", "--out", masks / "c" / "asr.json"),
    ):
        assert cli("masks", *arguments)[0] == 0
        code, _, err = cli("masks", *arguments)
        assert code == 2
        assert "exists; --force replaces it" in err
        assert cli("masks", *arguments, "--force")[0] == 0


def test_an_empty_folder_of_published_masks_is_an_error(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("masks", "import", tmp_path)
    assert code == 1
    assert "no published mask (.pth, .pt) in this folder" in err


def test_export_and_import_are_inverse(cli: Cli, masks: Path) -> None:
    path = masks / "seed0" / "asr.json"
    exported = masks / "asr_again" / "checkpoint.pth"
    assert cli("masks", "export", path, "--out", exported) == (0, f"{exported}\n", "")
    assert cli("masks", "import", exported, "--like", path, "--out", masks / "out")[0] == 0
    assert MaskFile.load(masks / "out" / "asr.json").heads == MaskFile.load(path).heads


def test_diff_counts_and_compares(cli: Cli, masks: Path) -> None:
    paths = masks / "seed0" / "asr.json", masks / "seed1" / "asr.json"
    a, b = (MaskFile.load(path).head_mask.heads for path in paths)
    code, said, _ = cli("masks", "diff", *paths, "--json")
    assert code == 0
    told = json.loads(said)
    assert (told["both"], told["only_a"], told["only_b"]) == (
        int((a & b).sum()),
        int((a & ~b).sum()),
        int((b & ~a).sum()),
    )
    assert told["jaccard"] == (a & b).sum() / (a | b).sum()
    assert told["by_layer"]["both"] == (a & b).sum(axis=1).tolist()
    assert told["same_model"] is True
    code, page, _ = cli("masks", "diff", *paths)
    assert code == 0
    assert f"Jaccard       {told['jaccard']:.3f}" in page
    assert page.count("layer ") == 3
    assert "different models" not in page


def test_diff_across_models_says_so(cli: Cli, masks: Path) -> None:
    foreign = identity(*SHAPE, fingerprint="sha256:" + "1" * 64)
    mask_file("asr", random_mask(9, SHAPE), foreign).save(masks / "f" / "asr.json")
    mask_file("asr", random_mask(9, (2, 8))).save(masks / "g" / "asr.json")
    own = masks / "seed0" / "asr.json"
    assert "different models" in cli("masks", "diff", own, masks / "f" / "asr.json")[1]
    code, _, err = cli("masks", "diff", own, masks / "g" / "asr.json")
    assert code == 1
    assert "one shape are needed" in err


@pytest.mark.parametrize("rule", list(Rule))
def test_combine_writes_what_the_rule_says(cli: Cli, masks: Path, rule: Rule) -> None:
    paths = [masks / f"seed{seed}" / "asr.json" for seed in range(3)]
    out = masks / "out" / "asr.json"
    assert cli("masks", "combine", f"--{rule.value}", *paths, "--out", out)[0] == 0
    assert MaskFile.load(out).head_mask == combine([MaskFile.load(path).head_mask for path in paths], rule)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "exactly one of --and, --or and --majority"),
        (["--and", "--or"], "exactly one of --and, --or and --majority"),
    ],
)
def test_combine_wants_one_rule(cli: Cli, masks: Path, options: list[str], said: str) -> None:
    path = masks / "seed0" / "asr.json"
    code, _, err = cli("masks", "combine", *options, path, path, "--out", masks / "o" / "asr.json")
    assert code == 2
    assert said in err


def test_combine_wants_two_masks(cli: Cli, masks: Path) -> None:
    path = masks / "seed0" / "asr.json"
    code, _, err = cli("masks", "combine", "--and", path, "--out", masks / "o" / "asr.json")
    assert code == 2
    assert "two or more" in err


def test_random_draws_as_many_heads(cli: Cli, masks: Path) -> None:
    path, out = masks / "seed0" / "asr.json", masks / "out" / "asr.json"
    assert cli("masks", "random", "--like", path, "--seed", "5", "--out", out)[0] == 0
    like, drawn = MaskFile.load(path).head_mask, MaskFile.load(out).head_mask
    assert drawn != like
    assert drawn.num_active == like.num_active
    assert cli("masks", "random", "--like", path, "--per-layer", "--out", out, "--force")[0] == 0
    by_layer = MaskFile.load(out).head_mask.heads.sum(axis=1)
    assert np.array_equal(by_layer, like.heads.sum(axis=1))
