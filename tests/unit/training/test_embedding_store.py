"""Audio embeddings on disk, and features computed ahead."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lalm.families import load_family
from lalm.family import AudioFeatures, ModelFamily
from training.batches import AudioEmbeddings
from training.checkpoint import CHECKPOINT
from training.config import TrainConfig
from training.embedding_store import EmbeddingStore
from training.errors import ManifestError
from training.features_ahead import Clips, features_of
from training.manifest import Example, load_manifest
from training.train import train

MakeRecipe = Callable[..., TrainConfig]
ROOMY = 2**30


def examples_of(config: TrainConfig) -> tuple[Example, ...]:
    return load_manifest(config.data.train, config.task).examples


def store_of(folder: Path, family: ModelFamily, max_bytes: int = ROOMY) -> EmbeddingStore:
    return EmbeddingStore(folder, family, max_bytes)


def embeddings(family: ModelFamily, examples: Sequence[Example], store: EmbeddingStore) -> AudioEmbeddings:
    audio = AudioEmbeddings(family, examples, keep=False, store=store)
    list(audio.warm())
    return audio


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def logits_of(config: TrainConfig) -> torch.Tensor:
    logits: torch.Tensor = torch.load(config.run_folder / CHECKPOINT, weights_only=True)["logits"]
    return logits


@pytest.fixture
def computed(toy_family: ModelFamily, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of clips of every pass of the encoder."""
    passes: list[int] = []
    embed_audio = toy_family.embed_audio

    def counted(features: Sequence[AudioFeatures]) -> list[torch.Tensor]:
        passes.append(len(features))
        return embed_audio(features)

    monkeypatch.setattr(toy_family, "embed_audio", counted)
    return passes


def test_every_clip_is_encoded_once_whatever_the_number_of_epochs_and_trainings(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path, computed: list[int]
) -> None:
    config = make_recipe(steps=9, data={"cache_folder": tmp_path / "cache"})  # three epochs
    train(config, family=toy_family)
    assert sum(computed) == 12 + 5
    train(make_recipe(steps=9, data={"cache_folder": tmp_path / "cache"}), family=toy_family)
    assert sum(computed) == 12 + 5


def test_a_training_from_disk_is_that_without_a_cache(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    stored = make_recipe(steps=6, data={"cache_folder": tmp_path / "cache"}, run={"folder": tmp_path / "one"})
    plain = make_recipe(steps=6, data={"cache_audio": False})
    for config in (stored, plain):
        train(config, family=toy_family)
    torch.testing.assert_close(logits_of(stored), logits_of(plain), atol=1e-4, rtol=1e-4)


def test_embeddings_come_back_to_the_bit(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    examples = examples_of(make_recipe())
    kept = AudioEmbeddings(toy_family, examples, keep=True)
    list(kept.warm())
    stored = embeddings(toy_family, examples, store_of(tmp_path / "cache", toy_family))
    for (one,), (other,) in zip(kept.get(range(12)), stored.get(range(12)), strict=True):
        assert torch.equal(one, other)


def test_a_changed_recording_and_another_model_are_other_entries(
    toy_family: ModelFamily, toy_checkpoint: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    example = examples_of(make_recipe())[0]
    (file,) = example.recordings[0]
    store = store_of(tmp_path / "cache", toy_family)
    (before,) = store.keys([example])
    assert store.keys([replace(example, text="another", line=7)]) == [before]
    half = load_family(toy_checkpoint, dtype="bfloat16")
    assert store_of(tmp_path / "cache", half).keys([example]) != [before]
    file.write_bytes(file.read_bytes() + b"\0")
    assert store.keys([example]) != [before]


def test_a_damaged_entry_is_computed_again(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path, computed: list[int]
) -> None:
    examples = examples_of(make_recipe())
    audio = embeddings(toy_family, examples, store_of(tmp_path / "cache", toy_family))
    before = audio.get([3])[0][0]
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    torch.testing.assert_close(audio.get([3])[0][0], before, atol=1e-5, rtol=1e-5)


def test_the_folder_stays_within_its_bound_and_the_rest_is_computed_anew(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path, computed: list[int]
) -> None:
    examples, folder = examples_of(make_recipe()), tmp_path / "cache"
    embeddings(toy_family, examples, store_of(folder, toy_family))
    whole = size_of(folder)
    bound = whole // 2
    small = store_of(folder, toy_family, bound)
    assert size_of(folder) <= bound  # a lower bound than before is kept from the start
    audio = embeddings(toy_family, examples, small)
    assert 0 < size_of(folder) <= bound
    computed.clear()
    assert len(audio.get(range(12))) == 12
    assert 0 < sum(computed) < 12
    assert "12 that this training uses" in small.describe()


def test_what_was_not_used_for_longest_gives_way_never_what_is_used(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    examples, folder = examples_of(make_recipe()), tmp_path / "cache"
    first = store_of(folder, toy_family)
    embeddings(toy_family, examples[:4], first)
    keys = first.keys(examples[:4])
    for number, key in enumerate(keys):
        os.utime(folder / key[:2] / f"{key}.safetensors", (number, number))
    store = store_of(folder, toy_family, size_of(folder))
    embeddings(toy_family, [examples[0], examples[4]], store)  # both of the shortest
    assert store.has(keys[0])
    assert not store.has(keys[1])
    assert store.has(keys[3])


def test_lengths_are_estimated_from_headers(toy_family: ModelFamily, make_recipe: MakeRecipe) -> None:
    audio = AudioEmbeddings(toy_family, examples_of(make_recipe()), keep=False)
    exact = [len(embeds[0]) for embeds in audio.get(range(12))]
    estimated = [audio.num_tokens(index) for index in range(12)]
    assert all(abs(one - other) <= 1 for one, other in zip(exact, estimated, strict=True))


def test_other_processes_get_the_family_without_its_model(
    toy_family: ModelFamily, make_recipe: MakeRecipe
) -> None:
    examples = examples_of(make_recipe())
    pickled = pickle.dumps(Clips(toy_family, examples))
    num_bytes = sum(parameter.nbytes for parameter in toy_family.model.parameters())
    assert len(pickled) < num_bytes / 2
    clips: Any = pickle.loads(pickled)
    (features,) = clips[0]
    assert torch.equal(features.mel, toy_family.features(examples[0].waveforms(30)[0]).mel)


def test_workers_give_the_same_features_and_name_a_bad_recording(
    toy_family: ModelFamily, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    good = examples_of(make_recipe())
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    examples = [*good, replace(good[0], recordings=((bad,),), line=99)]
    order = [[0, 5], [], [7], [12]]
    features = features_of(toy_family, examples, order, num_workers=1)
    here = features_of(toy_family, examples, order[:3], num_workers=0)
    for _ in range(3):
        for one, other in zip(next(features), next(here), strict=True):
            assert torch.equal(one[0].mel, other[0].mel)
    with pytest.raises(ManifestError, match=r"bad\.wav") as caught:
        next(features)
    assert caught.value.line == 99
