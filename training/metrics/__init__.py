"""Metrics of answers against references: one file a kind, each metric with what a bootstrap needs of it."""

from __future__ import annotations

from typing import Literal

TextMetric = Literal["wer", "bleu", "rouge"]
