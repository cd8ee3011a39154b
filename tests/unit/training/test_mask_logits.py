from __future__ import annotations

import math

import pytest
import torch

from training.mask_logits import MaskLogits, binarise
from training.schedule import annealed_tau


def make(seed: int = 0, init_mean: float = 1.0, init_std: float = 0.5) -> MaskLogits:
    generator = torch.Generator().manual_seed(seed)
    return MaskLogits(3, 5, init_mean=init_mean, init_std=init_std, generator=generator)


def test_zero_and_what_rounds_to_it_in_float32_are_active() -> None:
    logits = torch.tensor([[0.0, -1e-9, 1e-9, -1e-3, 4.0, -4.0]])
    assert binarise(logits).to_strings() == ["111010"]


def test_a_double_is_rounded_to_float32_before_it_is_compared() -> None:
    assert binarise(torch.tensor([[-1e-9, -1.0]], dtype=torch.float64)).to_strings() == ["10"]


def test_a_gate_holds_exact_zeros_and_ones_and_differs_between_samples() -> None:
    gate = make(init_mean=0.0).sample(64, tau=0.7)
    assert gate.shape == (3, 64, 5)
    assert set(gate.detach().unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(gate[:, 0], gate[:, 1])


def test_the_gradient_is_that_of_the_soft_gate() -> None:
    mask_logits = make()
    state = mask_logits.generator.get_state()
    mask_logits.sample(4, tau=0.5).sum().backward()
    got = mask_logits.logits.grad

    mask_logits.generator.set_state(state)
    noise = torch.empty(3, 4, 5).exponential_(generator=mask_logits.generator).log()
    logits = mask_logits.logits.detach().clone().requires_grad_()
    torch.sigmoid((logits[:, None] + noise) / 0.5).sum().backward()
    assert got is not None
    assert torch.equal(got, logits.grad)


def test_the_noise_is_a_left_tail_gumbel_draw() -> None:
    """P(logit + log e > 0) = P(e > exp(-logit)) = exp(-exp(-logit)) for e ~ Exp(1), whatever tau."""
    mask_logits = make(init_mean=0.3, init_std=0.0)
    for tau in (4.0, 0.3):
        active = mask_logits.sample(20_000, tau).mean().item()
        assert active == pytest.approx(math.exp(-math.exp(-0.3)), abs=0.005)


def test_the_generator_determines_the_draws_and_can_be_set_back() -> None:
    one, other = make(seed=7), make(seed=7)
    assert torch.equal(one.logits, other.logits)
    state = one.generator.get_state()
    first = one.sample(2, 1.0)
    assert torch.equal(first, other.sample(2, 1.0))
    assert not torch.equal(first, one.sample(2, 1.0))
    one.generator.set_state(state)
    assert torch.equal(first, one.sample(2, 1.0))


def test_logits_start_at_the_configured_mean() -> None:
    assert torch.equal(make(init_mean=4.0, init_std=0.0).logits, torch.full((3, 5), 4.0))


def test_tau_falls_linearly_over_a_fraction_of_the_steps_and_stays() -> None:
    taus = [annealed_tau(step, 10, start=4.0, end=0.5, fraction=0.7) for step in range(11)]
    assert taus[0] == 4.0
    assert taus[1] - taus[0] == pytest.approx(-0.5)
    assert taus[7:] == [0.5] * 4
    assert annealed_tau(0, 10, start=4.0, end=0.5, fraction=0.0) == 0.5
