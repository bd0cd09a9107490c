"""One table over every neuron and surrogate, and a neuron that only this test knows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import small
from small import SURROGATES, gradients, images, network
from spikelet.convert import convert
from spikelet.errors import UserError
from spikelet.execute import bptt, rate
from spikelet.neuron import IF, LIF, PLIF, Neuron, scan
from spikelet.slopes import closed_form, respond
from spikelet.spike import Sigmoid, fire


def neurons(**fields: object) -> dict[str, Neuron]:
    """Every variant of the small tests' IF and LIF, and as many of PLIF."""
    table = small.neurons(**fields)
    for reset, detach, rest in small.RULES:
        rule = {"reset": reset, "detach": detach, "v_reset": rest, **fields}
        end = f"{reset}{rest:g}-{'detached' if detach else 'full'}"
        table[f"PLIF-{end}"] = PLIF(tau=1.8, **rule)
        table[f"PLIF-decay-{end}"] = PLIF(tau=1.8, input_decay=True, **rule)
    table["PLIF-signed"] = PLIF(signed=True, **fields)
    return table


NAMES = list(neurons())
SHAPES = [(5, 3), (5, 3, 2), (5, 3, 2, 2), (1, 3, 2, 2)]


def currents(steps: int = 4, shape: tuple[int, ...] = (5, 3), dtype: torch.dtype = torch.float32):
    return 0.4 + torch.randn(steps, *shape, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_common_table(name: str, per_channel: bool, shape: tuple[int, ...]) -> None:
    """Shape, dtype, device, determinism, copies, state and a finite gradient."""
    theta = torch.tensor([0.5, 1.0, 2.0]) if per_channel else torch.tensor(0.8)
    neuron = neurons(threshold=theta, initial=theta / 2, learn_threshold=True)[name]
    x = currents(shape=shape).requires_grad_()
    y = neuron(x)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert torch.equal(neuron(x), y), "the same currents give the same spikes"
    assert torch.equal(copy.deepcopy(neuron)(x), y)
    other = neurons(threshold=theta * 3, initial=theta, learn_threshold=True)[name]
    other.load_state_dict(neuron.state_dict())
    assert torch.equal(other(x), y)
    grads = torch.autograd.grad(y.square().sum(), [x, neuron.threshold])
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert grads[1].shape == theta.shape
    amplitude = theta.reshape(-1, *[1] * (len(shape) - 2)) if per_channel else theta
    assert set((y / amplitude).round().unique().tolist()) <= {-1.0, 0.0, 1.0}
    torch.testing.assert_close((y / amplitude).round() * amplitude, y)
    assert bool((scan(neuron, x).spikes.unique() % 1 == 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_other_devices(name: str) -> None:
    """Everything a neuron makes lies where its input does."""
    y = neurons()[name].to("meta")(torch.empty(3, 2, 4, device="meta"))
    assert (y.device.type, tuple(y.shape)) == ("meta", (3, 2, 4))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_integrated_in_single(name: str, dtype: torch.dtype) -> None:
    """Small charges are not lost against a large potential."""
    neuron = neurons(threshold=100.0, initial=64.0)[name]
    x = torch.full((8, 1, 1), 0.01, dtype=dtype)
    half, full = scan(neuron, x).potential, scan(neuron, x.float()).potential
    assert half.dtype == torch.float32
    assert torch.equal(half, full)
    with torch.no_grad():
        assert closed_form(neuron, x.float(), 8).slope.dtype == torch.float32
        in_half, in_full = respond(neuron, x, 8), respond(neuron, x.float(), 8)
    assert in_half.slope.dtype == torch.float32
    assert torch.equal(in_half.slope, in_full.slope)
    assert torch.equal(in_half.output.float(), in_full.output)  # 100 is exact in half precision


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_between_runs(name: str) -> None:
    neuron, x = neurons()[name], currents()
    first, before = neuron(x), dict(vars(neuron))
    neuron(10 + currents(steps=7, shape=(2, 3, 3)))
    assert torch.equal(neuron(x), first)
    assert dict(vars(neuron)) == before


@pytest.mark.parametrize("name", SURROGATES)
def test_slope_is_the_derivative_of_the_primitive(name: str) -> None:
    """By finite differences, away from kinks; the primitive runs from 0 to 1."""
    surrogate = SURROGATES[name]
    u = torch.linspace(-3, 3, 487, dtype=torch.float64)
    difference = (surrogate.primitive(u + 1e-6) - surrogate.primitive(u - 1e-6)) / 2e-6
    torch.testing.assert_close(surrogate.slope(u), difference, rtol=1e-5, atol=1e-6)
    ends = surrogate.primitive(torch.tensor([-1e6, 1e6], dtype=torch.float64))
    goal = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(ends, goal, atol=1e-5, rtol=0)
    assert float(surrogate.slope(u).sum() * (u[1] - u[0])) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("field", ["alpha", "width"])
def test_surrogates_have_a_width(field: str) -> None:
    for name, surrogate in SURROGATES.items():
        if not hasattr(surrogate, field):
            continue
        other = type(surrogate)(**{field: 0.7})
        u = torch.linspace(-1, 1, 203, dtype=torch.float64)
        difference = (other.primitive(u + 1e-6) - other.primitive(u - 1e-6)) / 2e-6
        torch.testing.assert_close(other.slope(u), difference, rtol=1e-5, atol=1e-6, msg=name)


def test_fire_has_the_surrogates_slope_in_both_modes() -> None:
    u = torch.linspace(-1, 1, 11, dtype=torch.float64).requires_grad_()
    s = fire(u, Sigmoid())
    assert torch.equal(s, (u >= 0).double())
    (grad,) = torch.autograd.grad(s.sum(), u)
    one = torch.ones_like(u)
    _, tangent = torch.func.jvp(lambda v: fire(v, Sigmoid()), (u.detach(),), (one,))
    assert torch.equal(grad, Sigmoid().slope(u.detach()))
    assert torch.equal(tangent, grad)


@pytest.mark.parametrize("theta", [0.5, 1.0, 2.0])
def test_mean_rate_approaches_the_clipped_current(theta: float) -> None:
    """IF with soft reset: mean of theta s tends to clip(I, 0, theta), within theta / (2 T)."""
    x = torch.linspace(-1, 3, 41, dtype=torch.float64)
    for steps in (1, 4, 16, 64, 256):
        neuron = IF(threshold=theta, initial=theta / 2).double()
        error = neuron(x.expand(steps, 1, -1)).mean(0) - x.clamp(0, theta)
        assert float(error.abs().max()) <= theta / 2 / steps + 1e-9


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("signed", [False, True])
def test_constant_current_is_quantised_exactly(steps: int, signed: bool) -> None:
    theta = 0.75
    x = torch.linspace(-2, 2, 401, dtype=torch.float64) + 1e-4
    neuron = IF(threshold=theta, initial=theta / 2, signed=signed).double()
    count = neuron(x.expand(steps, 1, -1)).sum(0)[0] / theta
    expected = torch.floor(x * steps / theta + 0.5).clamp(0, steps)
    torch.testing.assert_close(count, expected)


def test_a_signed_spike_takes_one_back() -> None:
    """Early charge, then as much discharge: binary spikes stay, signed ones return to zero."""
    x = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0]).reshape(-1, 1, 1)
    sums = {signed: float(IF(signed=signed, initial=0.5)(x).sum()) for signed in (False, True)}
    assert sums == {False: 2.0, True: 0.0}
    spikes = scan(IF(signed=True, initial=0.5), x).spikes.flatten().tolist()
    assert spikes == [1, 1, -1, -1, 0]


def test_signed_mean_is_nearer_to_the_quantised_mean_current() -> None:
    x = 0.3 + torch.randn(8, 64, 32, dtype=torch.float64)
    goal = (x.mean(0) * 8 + 0.5).floor().clamp(0, 8) / 8
    error = {}
    for signed in (False, True):
        mean = IF(signed=signed, initial=0.5).double()(x).mean(0)
        error[signed] = float((mean - goal).square().mean())
    assert error[True] < 0.5 * error[False]


def test_the_default_detaches_where_the_leak_is_strong() -> None:
    detached = [n.detached for n in (IF(), LIF(tau=1.25), LIF(tau=2.0), LIF(tau=3.0))]
    assert detached == [False, True, True, False]
    assert [PLIF(tau=tau).detached for tau in (1.25, 2.0, 3.0)] == detached[1:]
    assert IF(detach=True).detached
    assert not LIF(tau=1.25, detach=False).detached


def test_theta_stays_positive_while_it_is_learned() -> None:
    neuron = IF(threshold=0.5, learn_threshold=True)
    with torch.no_grad():
        neuron.threshold.fill_(-3.0)
    assert float(neuron.theta) == pytest.approx(1e-3)
    assert bool(torch.isfinite(neuron(currents())).all())
    assert [name for name, _ in neuron.named_parameters()] == ["threshold"]
    assert not list(IF().parameters())


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: IF(threshold=0.0), "threshold"),
        (lambda: IF(threshold=-1.0), "threshold"),
        (lambda: IF(threshold=float("nan")), "threshold"),
        (lambda: IF(threshold=torch.tensor([1.0, 0.0])), "threshold"),
        (lambda: IF(reset="medium"), "reset"),
        (lambda: IF(reset="hard", signed=True), "signed"),
        (lambda: LIF(reset="hard", signed=True), "signed"),
        (lambda: LIF(tau=1.0), "tau"),
        (lambda: LIF(tau=-2.0), "tau"),
        (lambda: PLIF(tau=1.0), "tau"),
        (lambda: PLIF(reset="hard", signed=True), "signed"),
    ],
)
def test_bad_arguments(make, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make()


# ---- a neuron of the user's own ---------------------------------------------------------------


class Adaptive(Neuron):
    """An adaptive threshold theta (1 + b a): a counts spikes and forgets; b is learned."""

    def __init__(self) -> None:
        super().__init__(threshold=0.75)
        self.boost = nn.Parameter(torch.tensor(0.5))

    def start(self, current: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(current), torch.zeros_like(current)

    def step(self, state: tuple[Tensor, Tensor], current: Tensor):
        v, a = state
        h = 0.9 * v + current
        limit = self.theta * (1 + self.boost.to(current) * a)
        s = fire(h / limit - 1, Sigmoid())
        return (h - limit * s, 0.8 * a + s), s, h


@pytest.mark.parametrize("steps", [1, 3])
def test_a_neuron_needs_start_and_step_only(steps: int) -> None:
    """Both ways of taking gradients work; values agree, at T = 1 gradients do."""
    x = images().expand(steps, -1, -1, -1, -1)
    runs = []
    for execute in (bptt, rate):
        net = convert(network(), Adaptive()).double()
        trace = execute(net, x, {"relu1": ("mean", "potential", "spikes")})
        runs.append((trace, gradients(net, trace.mean_logits.square().sum())))
    torch.testing.assert_close(runs[0][0].logits, runs[1][0].logits)
    for name in ("potential", "spikes", "mean"):
        a, b = (getattr(trace.taps["relu1"], name) for trace, _ in runs)
        torch.testing.assert_close(a, b)
    for key, value in runs[0][1].items():
        assert bool(torch.isfinite(runs[1][1][key]).all())
        if steps == 1:
            torch.testing.assert_close(runs[1][1][key], value, rtol=1e-9, atol=1e-9, msg=key)
    assert float(runs[1][1]["relu2.boost"].abs()) > 0 or steps == 1


def test_slope_of_an_own_neuron_is_that_of_its_scan() -> None:
    neuron = Adaptive().double()
    x = currents(dtype=torch.float64)
    shift = torch.zeros_like(x[0], requires_grad=True)
    mean = neuron(x + shift).mean(0)
    by_shift, by_boost = torch.autograd.grad(mean.sum(), [shift, neuron.boost])
    response = respond(neuron, x, len(x))
    torch.testing.assert_close(response.slope, by_shift)
    assert response.parameters is not None
    torch.testing.assert_close(response.parameters["boost"][0].sum(), by_boost)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1, 1)])
def test_own_parameters_of_any_shape(shape: tuple[int, ...]) -> None:
    """At one step the gradient of a neuron's own parameter is BPTT's, whatever its shape."""

    class Gained(Neuron):
        def __init__(self) -> None:
            super().__init__(threshold=0.75)
            self.factor = nn.Parameter(torch.full(shape, 1.5))

        def start(self, current: Tensor) -> Tensor:
            return torch.zeros_like(current)

        def step(self, state: Tensor, current: Tensor):
            factor = self.factor.to(current)
            if factor.ndim == 1:
                factor = factor[:, None, None]
            h = state + factor * current
            s = fire(h / self.theta - 1, Sigmoid())
            return h - self.theta * s, s, h

    found = []
    for execute in (bptt, rate):
        net = convert(network(), Gained()).double()
        logits = execute(net, images().unsqueeze(0)).mean_logits
        found.append(gradients(net, logits.square().sum()))
    for key in found[0]:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=1e-9, atol=1e-9, msg=key)
