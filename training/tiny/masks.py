"""Train the embedded model's head masks: ``python -m training.tiny.masks training/recipes/*.toml``.

The same recipe as ``ahamask train``, on the same function: the embedded model's fine heads are copies of one
query that keep one output channel each, so a gate on fine heads is a gate on the output channels of the model
before its heads were split. That form has a sixteenth of the attention to compute; losses and gradients are
the same up to rounding. ``ahamask train`` does the same work on the split model, several times slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from lalm.family import ModelFamily
from training.config import load_config
from training.train import load_configured_family, train


class MergedDecoder:
    """The decoder before its heads were split.

    ``head_gate`` [num_layers, batch, num fine heads] gates output channels.
    """

    def __init__(self, split: Any) -> None:
        config = split.config
        self.parts = config.num_attention_heads // config.num_key_value_heads
        self._decoder: Any = merge_heads(split)
        self._gate: Tensor | None = None
        for index, layer in enumerate(self._decoder.layers):
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, i=index: self._gated(args[0], i))

    def __call__(self, *, head_gate: Tensor | None, **inputs: Any) -> Any:
        self._gate = head_gate
        return self._decoder(**inputs)

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self._decoder.get_input_embeddings()
        return embeddings

    def _gated(self, output: Tensor, layer: int) -> tuple[Tensor]:
        if self._gate is None:
            return (output,)
        gate = self._gate[layer]
        channels = output.shape[-1] // gate.shape[-1]
        return (output * gate.repeat_interleave(channels, dim=-1)[:, None],)


def merge_heads(split: Any) -> Any:
    """Undo ``training.tiny.model.split_heads`` on a decoder.

    Raises:
        ValueError: the heads of a group are not copies of one query with disjoint output channels.
    """
    config = split.config
    heads, dim = config.num_key_value_heads, config.head_dim
    parts = config.num_attention_heads // heads
    state = dict(split.state_dict())
    owner = torch.arange(dim) // (dim // parts)  # which fine head keeps a channel
    for name, value in list(state.items()):
        if ".q_proj." in name:
            groups = value.view(heads, parts, dim, *value.shape[1:])
            if not torch.equal(groups, groups[:, :1].expand_as(groups)):
                raise ValueError(f"{name}: the heads of a group are not copies")
            state[name] = groups[:, 0].reshape(heads * dim, *value.shape[1:])
        elif ".o_proj." in name:
            columns = value.view(-1, heads, parts, dim)
            kept = torch.nn.functional.one_hot(owner, parts).T.bool()  # [parts, dim]
            if columns.masked_select(~kept).any():
                raise ValueError(f"{name}: the channels of a group are not disjoint")
            state[name] = columns.sum(2).reshape(-1, heads * dim)
    merged = Qwen2Model(Qwen2Config(**{**config.to_dict(), "num_attention_heads": heads}))
    merged.load_state_dict(state)
    return merged.to(split.dtype).eval().requires_grad_(False)


class MergedFamily:
    """A family whose decoder is merged; everything else is the family's own."""

    def __init__(self, family: ModelFamily) -> None:
        self._family = family
        self.decoder = MergedDecoder(family.decoder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)


def main(
    recipes: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Recipes (TOML).")],
    num_threads: Annotated[int, typer.Option(help="Threads of the computation.")] = 2,
) -> None:
    """Train the head mask of each recipe."""
    for recipe in recipes:
        config = load_config(recipe, {"run.num_threads": num_threads})
        family: Any = MergedFamily(load_configured_family(config))
        typer.echo(str(train(config, family=family)))


if __name__ == "__main__":
    typer.run(main)
