"""Windowed rates: one window is rate-based backpropagation, T windows are BPTT (methods 3.9)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import MODELS, gradients, images, moving, network, neurons, student
from spikelet.distill import Distiller
from spikelet.encode import Direct, repeat
from spikelet.errors import UserError
from spikelet.execute import bptt, gives, rate
from spikelet.neuron import IF, Neuron
from spikelet.slopes import by_jvp
from spikelet.terms import CrossEntropy, Logits, StepLogits

STEPS = 4
PLACES = {"residual": "relu2", "stages": "layer2", "one-dimensional": "2", "concatenate": "join"}
FIELDS = ("mean", "spikes", "current", "potential")


def run(net: nn.Module, execute, x: Tensor, place: str | None = None) -> tuple[Tensor, dict]:
    """Logits, and gradients of a loss that reads every step and field unevenly."""
    torch.manual_seed(1)
    trace = execute(net, x, {} if place is None else {place: FIELDS})
    weights = torch.linspace(1, 2, len(x), dtype=x.dtype).view(-1, 1, 1)
    loss = (weights * (trace.logits + 1).square()).sum()
    if place is not None:
        tap = trace.taps[place]
        loss = loss + tap.mean.square().sum()
        for field in (tap.spikes, tap.current, tap.potential):
            assert field is not None
            scale = torch.linspace(1, 3, len(x), dtype=x.dtype).view(-1, *[1] * (field.ndim - 1))
            loss = loss + (scale * field.square()).sum()
    return trace.logits.detach(), gradients(net, loss)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-9, msg=key)


@pytest.mark.parametrize("still", [True, False], ids=["still image", "moving"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_as_many_windows_as_steps_are_bptt(name: str, training: bool, still: bool) -> None:
    """Values and gradients of whole networks, thresholds, batch norm and single steps included."""
    x = repeat(images(name), STEPS) if still else moving(name, STEPS)
    found = []
    for execute in (bptt, partial(rate, windows=STEPS)):
        net = student(name, IF(0.75, 0.25, learn_threshold=True)).train(training)
        found.append((*run(net, execute, x, PLACES.get(name)), net.state_dict()))
    torch.testing.assert_close(found[1][0], found[0][0])
    close(found[1][1], found[0][1])
    for key in found[0][2]:
        if "running" in key and name != "max pool of spikes":
            torch.testing.assert_close(found[1][2][key], found[0][2][key], msg=key)


@pytest.mark.parametrize("name", neurons())
def test_every_neuron_at_as_many_windows_as_steps(name: str) -> None:
    found = []
    for execute in (bptt, partial(rate, windows=STEPS)):
        net = student("residual", neurons(threshold=0.75, initial=0.25)[name]).train()
        found.append(run(net, execute, moving("residual", STEPS), "relu2"))
    torch.testing.assert_close(found[1][0], found[0][0])
    close(found[1][1], found[0][1])


@pytest.mark.parametrize("windows", [1, 2, 4])
@pytest.mark.parametrize("name", ["residual", "stages", "mlp"])
def test_values_do_not_depend_on_the_windows(name: str, windows: int) -> None:
    x = moving(name, STEPS)
    expected = bptt(student(name).train(), x).logits
    torch.testing.assert_close(rate(student(name).train(), x, windows=windows).logits, expected)


def by_autograd(neuron: Neuron, currents: Tensor, windows: int) -> Tensor:
    """d window mean of theta s / d shift of a window's current, "W W B ...", one by one."""
    length = len(currents) // windows
    columns = []
    for window in range(windows):
        moved = torch.zeros_like(currents[0]).requires_grad_()
        inside = torch.zeros(len(currents), *[1] * (currents.ndim - 1), dtype=currents.dtype)
        inside[window * length : (window + 1) * length] = 1
        output = neuron(currents + inside * moved)
        means = output.unflatten(0, (windows, length)).mean(1)
        rows = [torch.autograd.grad(m.sum(), moved, retain_graph=True)[0] for m in means]
        columns.append(torch.stack(rows))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("windows", [1, 2, 3, 6])
@pytest.mark.parametrize("name", neurons())
def test_slope_matrices(name: str, windows: int) -> None:
    """They equal reverse-mode derivatives, and no window moves an earlier one."""
    neuron = neurons(threshold=0.8, initial=0.3)[name].double()
    currents = torch.randn(6, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = by_jvp(neuron, currents, windows=windows).slope
    expected = by_autograd(neuron, currents, windows)
    if windows == 1:
        torch.testing.assert_close(slope, expected[0, 0])
        return
    torch.testing.assert_close(slope, expected)
    for out in range(windows):
        assert bool((slope[out, out + 1 :] == 0).all())


def test_more_windows_come_nearer_to_bptt() -> None:
    """On a network with depth: the cosine to BPTT's gradient, per-step loss included."""

    def direction(execute) -> Tensor:
        net = student("stages", IF(0.75, 0.25)).train()
        found = run(net, execute, moving("stages", 8))[1]
        return torch.cat([found[key].flatten() for key in sorted(found)])

    exact = direction(bptt)
    near = [F.cosine_similarity(direction(partial(rate, windows=w)), exact, dim=0) for w in (1, 8)]
    assert float(near[1]) == pytest.approx(1.0)
    assert float(near[0]) < float(near[1])


def test_terms_get_what_windows_give() -> None:
    """Single steps at W = T only; means always; the sentence names the way out."""
    assert [gives(partial(rate, windows=w), 4) for w in (1, 2, 4)] == ["mean", "windows", "steps"]

    def bound(windows: int, term) -> Distiller:
        return Distiller(
            student("stages", calibrated=True), network("stages"), terms={"t": term},
            execute=partial(rate, windows=windows), encode=Direct(4),
            example=images("stages", 16),
        )  # fmt: skip

    x, labels = images("stages"), torch.tensor([0, 1, 2, 0])
    for term in (CrossEntropy(per_step=True), StepLogits()):
        with pytest.raises(UserError, match="more windows"):
            bound(2, term)
        loss, _ = bound(4, term)(x, labels)
        assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(bound(2, Logits())(x, labels)[0]))


@pytest.mark.parametrize("windows", [0, 3, 8])
def test_steps_must_divide_into_windows(windows: int) -> None:
    with pytest.raises(UserError, match="divisor of the 4 steps"):
        rate(student("mlp"), moving("mlp", STEPS), windows=windows)
