"""PLIF: its learned leak against plain recursions, LIF, BPTT and SpikingJelly."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from small import EXACT, RULES, SURROGATES, gradients, images, moving, network
from spikelet.convert import convert
from spikelet.execute import bptt, rate
from spikelet.neuron import LIF, PLIF, duplicate, scan
from spikelet.slopes import by_jvp, closed_form, respond
from spikelet.spike import Arctangent, Rectangle, Sigmoid
from spikelet.train.schedule import parameter_groups


def currents(steps: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.4 + torch.randn(steps, 5, 3, generator=generator, dtype=torch.float64)


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize(("reset", "detach", "rest"), RULES)
@pytest.mark.parametrize("tau", [1.25, 2.0, 5.0])
def test_it_is_the_lif_of_its_tau(
    tau: float, reset: str, detach: bool, rest: float, decay: bool
) -> None:
    """Spikes, potentials and the gradient of the current."""
    rule = {"reset": reset, "detach": detach, "v_reset": rest, "threshold": 0.8, "initial": 0.3}
    found = []
    for kind in (LIF, PLIF):
        neuron = kind(tau=tau, input_decay=decay, **rule).double()
        if kind is PLIF:
            nn.init.constant_(neuron.w, -math.log(tau - 1))  # in full precision
        x = currents().requires_grad_()
        run = scan(neuron, x)
        weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
        found.append((*run, torch.autograd.grad((run.spikes * weight).sum(), x)[0]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tau", [1.01, 1.5, 2.0, 40.0])
def test_w_stands_for_tau(tau: float) -> None:
    neuron = PLIF(tau=tau, input_decay=True)
    assert float(neuron.tau.detach()) == pytest.approx(tau, rel=1e-5)
    assert float(neuron.leak.detach()) == pytest.approx(1 - 1 / tau, rel=1e-4)
    assert float(neuron.gain.detach()) == pytest.approx(1 / tau, rel=1e-4)
    assert PLIF(tau=tau).gain == 1.0
    assert [name for name, _ in neuron.named_parameters()] == ["w"]


@pytest.mark.parametrize("w", [-90.0, 90.0])
def test_the_leak_stays_a_leak_however_far_w_goes(w: float) -> None:
    neuron = PLIF()
    with torch.no_grad():
        neuron.w.fill_(w)
    assert 0 <= float(neuron.leak.detach()) <= 1
    y = neuron(currents().float())
    assert bool(torch.isfinite(torch.autograd.grad(y.sum(), neuron.w)[0]))


def test_what_is_detached_is_decided_at_the_start() -> None:
    neuron = PLIF(tau=2.0)
    with torch.no_grad():
        neuron.w.fill_(-3.0)
    assert float(neuron.leak.detach()) > 0.9
    assert neuron.detached
    assert not PLIF(tau=2.0, detach=False).detached


# ---- slopes ------------------------------------------------------------------------------------


def recursion(neuron: PLIF, x: Tensor) -> tuple[Tensor, Tensor]:
    """d mean(theta s) / dw and d mean(h) / dw "B C", step by step, by the chain rule.

    With k = sigmoid(w): h = rest + (1 - k)(v - rest) + (k or 1) I, dk = k (1 - k);
    dh = -dk (v - rest) + (1 - k) dv + (dk I with input decay); ds = q dh / theta;
    dv = dh - theta ds (soft), (1 - s) dh - (h - rest) ds (hard), without ds where detached.
    """
    k = 1 / (1 + math.exp(-float(neuron.w.detach())))
    dk = k * (1 - k)
    theta, rest = float(neuron.theta), neuron.v_reset
    slopes = []
    potentials = []
    for column in x.reshape(len(x), -1).T:
        v, dv, sent, risen = float(neuron.initial), 0.0, 0.0, 0.0
        for current in column.tolist():
            h = rest + (1 - k) * (v - rest) + (k if neuron.input_decay else 1) * current
            dh = -dk * (v - rest) + (1 - k) * dv + (dk * current if neuron.input_decay else 0)
            s = float(h >= theta)
            u = torch.tensor(h / theta - 1, dtype=torch.float64)
            ds = float(neuron.surrogate.slope(u)) * dh / theta
            kept = 0.0 if neuron.detached else ds
            if neuron.reset == "soft":
                v, dv = h - theta * s, dh - theta * kept
            else:
                v, dv = (1 - s) * h + s * rest, (1 - s) * dh - (h - rest) * kept
            sent, risen = sent + theta * ds, risen + dh
        slopes.append(sent / len(x))
        potentials.append(risen / len(x))
    return tuple(torch.tensor(e, dtype=x.dtype).reshape(x.shape[1:]) for e in (slopes, potentials))


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize(("reset", "detach", "rest"), RULES)
@pytest.mark.parametrize("surrogate", ["sigmoid", "arctangent"])
def test_slope_of_w_by_the_chain_rule(
    surrogate: str, reset: str, detach: bool, rest: float, decay: bool
) -> None:
    neuron = PLIF(
        tau=1.7, input_decay=decay, threshold=0.75, initial=0.25, reset=reset, detach=detach,
        v_reset=rest, surrogate=SURROGATES[surrogate],
    ).double()  # fmt: skip
    x = currents()
    response = respond(neuron, x, len(x), potential=True)
    assert response.parameters is not None
    slope, potential_slope = response.parameters["w"]
    for ours, theirs in zip((slope, potential_slope), recursion(neuron, x), strict=True):
        assert ours is not None
        assert float(theirs.abs().max()) > 0.01
        torch.testing.assert_close(ours, theirs)
    (total,) = torch.autograd.grad(neuron(x).mean(0).sum(), neuron.w)
    torch.testing.assert_close(slope.sum(), total)


@pytest.mark.parametrize("decay", [False, True])
def test_slope_of_a_silent_potential_by_differences(decay: bool) -> None:
    """Without spikes the potential is smooth in w, so that finite differences are its slope."""
    neuron = PLIF(input_decay=decay, threshold=50.0, surrogate=Rectangle(0.5)).double()
    x, step = currents(), 1e-6
    response = respond(neuron, x, len(x), potential=True)
    means = []
    with torch.no_grad():
        for sign in (1, -1):
            neuron.w += sign * step
            means.append(scan(neuron, x).potential.mean(0))
            neuron.w -= sign * step
    assert response.parameters is not None
    torch.testing.assert_close(
        response.parameters["w"][1], (means[0] - means[1]) / (2 * step), rtol=1e-6, atol=1e-8
    )
    assert not bool(response.parameters["w"][0].any())


@pytest.mark.parametrize("decay", [False, True])
def test_a_leak_that_is_not_trained_takes_the_closed_form(decay: bool) -> None:
    neuron = PLIF(tau=3.0, input_decay=decay, threshold=0.8).double().requires_grad_(False)
    x = currents()[:, :, :, None]
    fast, slow = respond(neuron, x, len(x)), by_jvp(neuron, x)
    assert fast.parameters is None
    torch.testing.assert_close(fast.slope, slow.slope)
    torch.testing.assert_close(fast.output, slow.output)
    with torch.no_grad():
        torch.testing.assert_close(closed_form(neuron, x, len(x)).slope, slow.slope)


# ---- networks ----------------------------------------------------------------------------------


def student(name: str = "residual", steps: int = 1, **fields: object):
    fields = {"tau": 1.6, "threshold": 0.75, "initial": 0.2, "learn_threshold": True, **fields}
    return convert(network(name), PLIF(**fields), steps=steps).double()


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_at_one_step_every_gradient_is_that_of_bptt(name: str, decay: bool) -> None:
    """Leaks and thresholds included."""
    found = []
    for execute in (bptt, rate):
        net = student(name, input_decay=decay).eval()
        logits = execute(net, images(name).unsqueeze(0)).mean_logits
        found.append(gradients(net, (logits * torch.tensor([1.0, -2.0, 0.5])).sum()))
    leaks = [key for key in found[0] if key.endswith(".w")]
    assert leaks
    assert any(float(found[0][key].abs()) > 1e-6 for key in leaks)
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-9, atol=1e-9, msg=key)


def test_over_several_steps_both_ways_agree_on_values_and_move_every_leak() -> None:
    x = moving(steps=4)
    runs = [(net := student().eval(), execute(net, x, ["relu1"])) for execute in (bptt, rate)]
    torch.testing.assert_close(runs[1][1].logits, runs[0][1].logits)
    for net, trace in runs:
        found = gradients(net, trace.mean_logits.square().sum())
        for path in ("relu1", "relu2"):
            assert float(found[f"{path}.w"].abs()) > 0


def test_one_leak_per_layer_that_survives_calibration_copies_and_storage() -> None:
    net = convert(network(), PLIF(tau=3.0), steps=2, calibrate=images().float().double())
    assert [name for name in net.state_dict() if name.endswith(".w")] == ["relu1.w", "relu2.w"]
    first, second = net.get_submodule("relu1"), net.get_submodule("relu2")
    assert first.threshold.shape == (4,), "calibrated for each channel"
    with torch.no_grad():
        first.w.fill_(0.3)
    assert float(second.tau.detach()) == pytest.approx(3.0)
    copied = duplicate(first)
    with torch.no_grad():
        copied.w.fill_(-1.0)
    assert float(first.w.detach()) == pytest.approx(0.3)
    other = convert(network(seed=1), PLIF(), steps=2, calibrate=images(seed=5))
    other.load_state_dict(net.state_dict())
    x = moving(steps=2)
    torch.testing.assert_close(bptt(other.eval(), x).logits, bptt(net.eval(), x).logits)


def test_leaks_are_not_decayed() -> None:
    net = student()
    decayed, free = (
        {id(p) for p in group["params"]} for group in parameter_groups(net, weight_decay=0.1)
    )
    for name, parameter in net.named_parameters():
        if name.endswith(".w"):
            assert id(parameter) in free - decayed, name


# ---- another implementation --------------------------------------------------------------------


@pytest.fixture(scope="module")
def jelly() -> ModuleType:
    return pytest.importorskip(
        "spikingjelly.activation_based", reason="spikingjelly is not installed"
    )


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(("reset", "rest"), [("hard", 0.0), ("hard", -0.25), ("soft", 0.0)])
@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("surrogate", ["sigmoid", "atan"])
@pytest.mark.parametrize("tau", [1.5, 4.0])
def test_plif_of_spikingjelly(
    jelly: ModuleType,
    tau: float,
    surrogate: str,
    decay: bool,
    reset: str,
    rest: float,
    detach: bool,
) -> None:
    """Spikes, and gradients of the currents and of w, at theta = 1."""
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate as functions

    theirs_of, ours_of = {
        "sigmoid": (functions.Sigmoid(alpha=4.0), Sigmoid(4.0)),
        "atan": (functions.ATan(alpha=2.0), Arctangent(2.0)),
    }[surrogate]
    theirs = neuron.ParametricLIFNode(
        init_tau=tau, decay_input=decay, v_reset=rest if reset == "hard" else None,
        surrogate_function=theirs_of, detach_reset=detach, step_mode="m",
    ).double()  # fmt: skip
    ours = PLIF(
        tau=tau, input_decay=decay, reset=reset, v_reset=rest, initial=rest, detach=detach,
        surrogate=ours_of,
    ).double()  # fmt: skip
    start, weight = 2 * currents(12), currents(12, seed=1)
    found = []
    for run in (theirs, ours):
        x = start.clone().requires_grad_()
        spikes = run(x)
        found.append((spikes.detach(), *torch.autograd.grad((spikes * weight).sum(), [x, run.w])))
    assert torch.equal(found[1][0], found[0][0])
    assert 0.05 < float(found[0][0].mean()) < 0.95
    for theirs_grad, ours_grad in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-6, atol=1e-7)
