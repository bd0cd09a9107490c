"""Windowed rates: one window is rate-based backpropagation, T windows are BPTT (methods 3.9)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import MODELS, gradients, images, moving, network, neurons, student
from spikelet.bench.memory import saved_bytes
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct, repeat
from spikelet.errors import UserError
from spikelet.execute import bptt, gives, rate
from spikelet.neuron import IF, LIF, Neuron
from spikelet.slopes import by_jvp, integrated
from spikelet.terms import CrossEntropy, Logits, StepLogits
from spikelet.windows import Links, by_products, chained, through_triangle

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


@pytest.mark.parametrize("place", ["relu2", None], ids=["potentials", "closed form alone"])
@pytest.mark.parametrize("name", neurons())
def test_every_neuron_at_as_many_windows_as_steps(name: str, place: str | None) -> None:
    found = []
    for execute in (bptt, partial(rate, windows=STEPS)):
        net = student("residual", neurons(threshold=0.75, initial=0.25)[name]).train()
        x = moving("residual", STEPS) if place else repeat(images("residual"), STEPS)
        found.append(run(net, execute, x, place))
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


def matrix(links: Links, shape: torch.Size) -> Tensor:
    """E "W W B ..." row by row: what a unit gradient of one window's mean gives."""
    rows = []
    for window in range(shape[0]):
        unit = torch.zeros(shape, dtype=torch.float64)
        unit[window] = 1
        rows.append(links.pull(unit, *links.slopes))
    return torch.stack(rows)


FORMS = [(name, 3, False) for name in neurons()] + [
    (name, windows, still)
    for name in ("IF-soft0-full", "LIF-decay-soft0-detached", "LIF-hard-0.2-full")
    for windows, still in ((2, False), (6, False), (3, True), (6, True))
]


@pytest.mark.parametrize(("name", "windows", "still"), FORMS)
def test_closed_form(name: str, windows: int, still: bool) -> None:
    """Against a Jacobian-vector product for each window, behind a batch norm that waits."""
    neuron = neurons(threshold=torch.linspace(0.6, 1, 4), initial=0.3)[name].double()
    generator = torch.Generator().manual_seed(0)
    currents = torch.randn(6, 5, 4, 2, dtype=torch.float64, generator=generator)
    currents = currents[:1] if still else currents
    affine = torch.linspace(0.5, 1.5, 4).double(), torch.linspace(0, 0.4, 4).double()
    fast = chained(neuron, currents, 6, windows, affine=affine)
    moved = integrated(currents, 6, affine)
    expected = by_jvp(neuron, moved, windows=windows)
    torch.testing.assert_close(fast.output, expected.output)
    torch.testing.assert_close(fast.means, expected.output.unflatten(0, (windows, -1)).mean(1))
    assert float(expected.slope.abs().max()) > 0.1
    torch.testing.assert_close(matrix(fast.links, fast.means.shape), expected.slope)
    slow = by_products(neuron, moved, windows)
    assert slow.links.pull is through_triangle
    torch.testing.assert_close(matrix(slow.links, slow.means.shape), expected.slope)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["residual", "stages", "concatenate", "mlp"])
def test_networks_by_the_closed_form_and_by_products(
    name: str, training: bool, fuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same logits, taps, statistics and gradients at W < T; batch norms wait where it is fused.

    The recursion itself is not compiled here; that is a slow test.
    """
    monkeypatch.setattr("spikelet.windows.compiled", lambda form: form)

    def slowly(neuron: Neuron, currents: Tensor, steps: int, windows: int, *rest) -> object:
        return by_products(neuron, integrated(currents, steps, rest[1]), windows)

    found = []
    for slow in (False, True):
        with monkeypatch.context() as patch:
            if slow:
                patch.setattr("spikelet.windows.chained", slowly)
            net = student(name, IF(0.75, 0.25)).train(training)
            execute = partial(rate, windows=2, fuse=fuse and not slow)
            found.append((*run(net, execute, moving(name, STEPS)), net.state_dict()))
    torch.testing.assert_close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])
    for key, value in found[1][2].items():
        torch.testing.assert_close(found[0][2][key], value, msg=key)


class Fork(nn.Module):
    """Two branches of the image, a batch norm in one, and their sum; again on spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.norm, self.again = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.left(x)) + self.right(x))
        return self.linear(torch.flatten(F.relu(self.norm(self.again(x)) + x), 1))


def test_sums_that_wait_and_runs_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A still image's residual sum, fused or not, recorded or not: the same logits, gradients."""
    for place in ("slopes", "windows"):
        monkeypatch.setattr(f"spikelet.{place}.compiled", lambda form: form)
    torch.manual_seed(0)
    net, x = convert(Fork().double(), IF(0.75, 0.25)).double().train(), repeat(images(), STEPS)
    expected = run(net, bptt, x)[0]
    found = [run(net, partial(rate, windows=2, fuse=fuse), x) for fuse in (False, True)]
    close(found[1][1], found[0][1])
    for fuse in (False, True):
        torch.testing.assert_close(found[fuse][0], expected)
        with torch.no_grad():
            logits = rate(net, x, windows=2, fuse=fuse).logits
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("neuron", [IF(), LIF(tau=1.25)], ids=["full", "detached"])
def test_slopes_that_are_kept(neuron: Neuron) -> None:
    """One number a window less one for each of 2 or 4, as docs/windows.md says; never W (W+1) / 2.

    Where the reset is detached what is written and kept is the same for all elements.
    """
    currents = torch.rand(12, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    for windows, most in {2: 3, 3: 8, 4: 12, 6: 20, 12: 23}.items():
        slopes = chained(neuron, currents, 12, windows).links.slopes
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in slopes}
        constant = 4 * 2 * windows
        assert sum(held.values()) <= most * currents[0].nbytes + constant
        if neuron.detached:
            assert sum(held.values()) <= (2 * windows - 1) * currents[0].nbytes + constant


def test_memory_grows_with_the_windows_not_with_the_steps() -> None:
    def of(windows: int, steps: int) -> int:
        execute = partial(rate, windows=windows)
        net = student("stages", IF(0.75, 0.25)).train()
        return saved_bytes(lambda: execute(net, moving("stages", steps, 16)).logits.sum())

    for windows in (2, 4):
        several = [of(windows, steps) for steps in (8, 16)]
        assert max(several) <= 1.02 * min(several)
    one, two, four, eight = (of(windows, 16) for windows in (1, 2, 4, 8))
    assert two < 2.5 * one
    assert eight - four == pytest.approx(2 * (four - two), rel=0.3)
    assert eight < of(16, 16)


def test_windows_run_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spikes travel in the precision of the currents; gradients stay close to fp32's."""
    monkeypatch.setattr("spikelet.windows.compiled", lambda form: form)
    found = []
    for half in (False, True):
        net = student("residual").float().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            trace = rate(net, moving("residual", 4).float(), fuse=True, windows=2)
        found.append(gradients(net, trace.mean_logits.float().square().sum()))
    for key, exact in found[0].items():
        similar = F.cosine_similarity(exact.flatten(), found[1][key].float().flatten(), dim=0)
        assert float(exact.norm()) < 1e-6 or float(similar) > 0.8, key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IF-soft0-full", "LIF-soft0-detached", "LIF-decay-hard-0.2-full"])
def test_compiled_closed_form(name: str) -> None:
    """Compiled and not: the same spikes and slopes, for windows and shapes of any size."""
    neuron = neurons(threshold=torch.linspace(0.6, 1, 4), initial=0.3)[name].double()
    for steps, windows in ((4, 2), (4, 4), (6, 3)):
        for shape in ((5, 4, 2), (3, 4, 7)):
            currents = torch.randn(steps, *shape, dtype=torch.float64)
            fast, slow = (chained(neuron, currents, steps, windows, fuse) for fuse in (True, False))
            assert torch.equal(fast.output, slow.output)
            torch.testing.assert_close(fast.means, slow.means)
            for one, other in zip(fast.links.slopes, slow.links.slopes, strict=True):
                torch.testing.assert_close(one, other)


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
