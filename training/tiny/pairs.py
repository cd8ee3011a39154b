"""Pairs of recordings for speaker verification."""

from __future__ import annotations

from random import Random

from training.tiny.records import Group, Pair, Record


def draw_pairs(
    records: list[Record], count: int, rng: Random, one_gender: float = 0.5, twins: float = 0.0
) -> list[Pair]:
    """Pairs of recordings, half of one speaker; of the others, a share `twins` is drawn to have one voice and
    gender, and of the rest about `one_gender` have one gender."""
    speech = [i for i, r in enumerate(records) if r.is_virtual_speaker]
    by_speaker: dict[str | None, list[int]] = {}
    by_group: dict[Group, list[int]] = {}
    for index in speech:
        by_speaker.setdefault(records[index].speaker, []).append(index)
        by_group.setdefault(records[index].group, []).append(index)
    several = [indices for indices in by_speaker.values() if len(indices) > 1]
    groups = [indices for indices in by_group.values() if len({records[i].speaker for i in indices}) > 1]

    def is_wanted(first: int, second: int, same: bool, twin: bool) -> bool:
        one, two = records[first], records[second]
        if same or one.speaker == two.speaker:
            return same
        return twin or (one.gender == two.gender) == (rng.random() < one_gender)

    pairs: list[Pair] = []
    for number in range(count):
        same = number % 2 == 0
        twin = not same and twins > 0 and bool(groups) and rng.random() < twins
        while True:
            first, second = rng.sample(
                rng.choice(several) if same else rng.choice(groups) if twin else speech, 2
            )
            if is_wanted(first, second, same, twin):
                break
        pairs.append(Pair(first, second, same=same))
    rng.shuffle(pairs)
    return pairs
