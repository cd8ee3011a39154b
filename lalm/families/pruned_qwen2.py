"""A Qwen2 decoder without its silenced heads, as a model type of its own that transformers loads by name.

`text_config` of such a checkpoint has this model type and `kept_heads`; the sizes beside it are those of the
unpruned decoder. Everything around the decoder stays what it was. `lalm.pruned` writes these checkpoints.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, Qwen2Config, Qwen2Model

from lalm.pruned_attention import HeadLayout, shrink

MODEL_TYPE = "ahamask_pruned_qwen2"


class PrunedQwen2Config(Qwen2Config):  # type: ignore[no-untyped-call]
    """Qwen2's configuration and, for each layer, one character a query head: 1 = kept."""

    model_type = MODEL_TYPE
    kept_heads: list[str] | None = None

    def layouts(self) -> list[HeadLayout]:
        """What is left of each layer.

        Raises:
            ValueError: `kept_heads` does not fit the sizes beside it.
        """
        rows = self.kept_heads or []
        num_layers, num_heads = self.num_hidden_layers, self.num_attention_heads
        if len(rows) != num_layers or any(len(row) != num_heads or set(row) - {"0", "1"} for row in rows):
            raise ValueError(f"kept_heads is not {num_layers} strings of {num_heads} times 0 or 1")
        return [HeadLayout(row, self.num_key_value_heads or num_heads) for row in rows]


class PrunedQwen2Model(Qwen2Model):  # type: ignore[no-untyped-call]
    """Qwen2's decoder with as many heads in each layer as its configuration keeps."""

    config_class = PrunedQwen2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer, layout in zip(self.layers, config.layouts(), strict=True):
            layer.self_attn = shrink(layer.self_attn, layout)


AutoConfig.register(MODEL_TYPE, PrunedQwen2Config)
AutoModel.register(PrunedQwen2Config, PrunedQwen2Model)
