"""Named sets of defaults for `[optim]` of a recipe; every value can be overridden in the recipe.

paper    the published schedule: 90,000 steps on a large model
short    minutes on a small model: a high learning rate from the first step, summed answer loss
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "short": {
        "steps": 400,
        "batch_size": 16,
        "lr": 0.05,
        "lr_start": 0.05,
        "lr_end": 0.0,
        "lr_warmup_steps": 0,
        "lr_decay": "linear",
        "lr_decay_fraction": 0.2,
        "weight_decay": 0.0,
        "init_mean": 1.0,
        "tau_end": 0.3,
        "tau_fraction": 0.7,
        "sparsity_lambda": 1e-4,
        "loss": "sample_sum",
    },
}
