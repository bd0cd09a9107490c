"""Settled and frozen batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spikelet.convert import convert
from spikelet.encode import repeat
from spikelet.execute import bptt, rate
from spikelet.norm import FrozenNorm, estimate_norms, freeze_norms, settle, settle_norms

STEPS = 3


def student() -> tuple[torch.fx.GraphModule, torch.Tensor]:
    images = torch.randn(16, 3, 8, 8)
    norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(6)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(), nn.Conv2d(6, 6, 3), norms[1], nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 5)),
    )
    for _ in range(20):
        model(images)
    return convert(model.eval(), steps=STEPS, calibrate=images), images


def test_frozen_norm_is_batch_norm_in_eval_mode_in_both_modes() -> None:
    norm = nn.BatchNorm2d(4).double()
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    norm(x)
    frozen = FrozenNorm(norm)
    norm.eval()
    for mode in (True, False):
        torch.testing.assert_close(frozen.train(mode)(x), norm(x))


@pytest.mark.parametrize("execute", [rate, bptt])
def test_frozen_norms_keep_the_calibrated_network_in_training(execute: object) -> None:
    net, images = student()
    before = execute(net.eval(), repeat(images, STEPS)).logits  # type: ignore[operator]
    freeze_norms(net).train()
    after = execute(net, repeat(images, STEPS)).logits  # type: ignore[operator]
    torch.testing.assert_close(after, before)
    buffers = copy.deepcopy(dict(net.named_buffers()))
    after.sum().backward()
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_settled_norm_has_the_input_s_statistics_and_the_same_function() -> None:
    norm = nn.BatchNorm2d(4).double()
    norm(3 + 2 * torch.randn(50, 4, 3, 3, dtype=torch.float64))
    norm.eval()
    x = 1 + torch.randn(50, 4, 3, 3, dtype=torch.float64)
    before = norm(x)
    settle(norm, x)
    torch.testing.assert_close(norm(x), before)
    torch.testing.assert_close(norm.train()(x), before)


def test_settled_student_starts_training_where_it_was_calibrated() -> None:
    net, images = student()
    before = bptt(net.eval(), repeat(images, STEPS)).logits
    settle_norms(net, lambda: bptt(net, repeat(images, STEPS)))
    torch.testing.assert_close(bptt(net, repeat(images, STEPS)).logits, before, atol=1e-4, rtol=0)
    trained = rate(net.train(), repeat(images, STEPS)).logits
    torch.testing.assert_close(trained, before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("execute", [rate, bptt])
def test_estimated_statistics_are_the_plain_average_over_the_batches(execute) -> None:
    """Against a loop over batches that reads the currents of each norm."""
    net, images = student()
    before = {name: p.clone() for name, p in net.named_parameters()}
    modes = [module.training for module in net.modules()]
    batches = images.split(4)
    estimate_norms(net, batches, lambda n, x: execute(n, repeat(x, STEPS)))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 for norm in norms)
    seen: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {norm: [] for norm in norms}

    def look(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        seen[norm].append((x.mean(1), x.var(1)))

    net.train()
    kept = copy.deepcopy(net.state_dict())
    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    for batch in batches:
        bptt(net, repeat(batch, STEPS))
    for handle in handles:
        handle.remove()
    net.load_state_dict(kept)
    for norm in norms:
        mean = torch.stack([m for m, _ in seen[norm]]).mean(0)
        variance = torch.stack([v for _, v in seen[norm]]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)


def test_with_one_batch_the_network_in_use_is_the_one_in_training() -> None:
    """On that batch both answer alike, but for the variance's n / (n - 1)."""
    net, images = student()
    estimate_norms(net, [images], lambda n, x: bptt(n, repeat(x, STEPS)))
    used = bptt(net.eval(), repeat(images, STEPS)).logits
    trained = bptt(net.train(), repeat(images, STEPS)).logits
    scale = trained.std()
    assert (used - trained).abs().mean() < 0.05 * scale
    estimate_norms(net, images.split(2), lambda n, x: bptt(n, repeat(x, STEPS)))
    poorer = bptt(net.eval(), repeat(images, STEPS)).logits
    assert (poorer - trained).abs().mean() > 2 * (used - trained).abs().mean()


def test_frozen_norms_are_not_estimated() -> None:
    net, images = student()
    freeze_norms(net)
    before = copy.deepcopy(net.state_dict())
    estimate_norms(net, images.split(4), lambda n, x: bptt(n, repeat(x, STEPS)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
