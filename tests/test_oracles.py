"""Neurons against SpikingJelly's and snnTorch's, on the same random currents."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from spikelet.neuron import IF, LIF, scan
from spikelet.spike import Arctangent, Sigmoid


@pytest.fixture(scope="module")
def jelly() -> ModuleType:
    return pytest.importorskip(
        "spikingjelly.activation_based", reason="spikingjelly is not installed"
    )


@pytest.fixture(scope="module")
def snn() -> ModuleType:
    return pytest.importorskip("snntorch", reason="snntorch is not installed")


def currents(steps: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.randn(steps, 16, 8, generator=generator)


HARD = [("hard", 0.0), ("hard", -0.25), ("soft", 0.0)]


@pytest.mark.parametrize(("reset", "rest"), HARD)
@pytest.mark.parametrize("theta", [1.0, 0.75])
def test_if_of_spikingjelly(jelly: ModuleType, reset: str, rest: float, theta: float) -> None:
    from spikingjelly.activation_based import neuron

    x = currents()
    theirs = neuron.IFNode(
        v_threshold=theta, v_reset=rest if reset == "hard" else None, step_mode="m"
    )
    ours = IF(threshold=theta, reset=reset, v_reset=rest, initial=rest)
    assert torch.equal(scan(ours, x).spikes, theirs(x))


@pytest.mark.parametrize(("reset", "rest"), HARD)
@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_lif_of_spikingjelly(
    jelly: ModuleType, reset: str, rest: float, decay: bool, tau: float
) -> None:
    from spikingjelly.activation_based import neuron

    x = 2 * currents()
    theirs = neuron.LIFNode(
        tau=tau, decay_input=decay, v_reset=rest if reset == "hard" else None, step_mode="m"
    )
    ours = LIF(tau=tau, input_decay=decay, reset=reset, v_reset=rest, initial=rest)
    spikes = theirs(x)
    assert 0.05 < float(spikes.detach().mean()) < 0.95
    assert torch.equal(scan(ours, x).spikes, spikes)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(("reset", "rest"), HARD)
@pytest.mark.parametrize("kind", ["IF", "LIF", "LIF with input decay"])
@pytest.mark.parametrize("surrogate", ["sigmoid", "atan"])
def test_gradients_of_spikingjelly(
    jelly: ModuleType, kind: str, reset: str, rest: float, detach: bool, surrogate: str
) -> None:
    """BPTT through the scan, with the same surrogate of h - theta at theta = 1."""
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate as functions

    decay = kind.endswith("decay")
    x = currents().double()
    theirs_of, ours_of = {
        "sigmoid": (functions.Sigmoid(alpha=4.0), Sigmoid(4.0)),
        "atan": (functions.ATan(alpha=2.0), Arctangent(2.0)),
    }[surrogate]
    their_rest = rest if reset == "hard" else None
    common = {"v_reset": their_rest, "detach_reset": detach, "surrogate_function": theirs_of}
    own = {"reset": reset, "v_reset": rest, "initial": rest, "detach": detach}
    if kind == "IF":
        theirs = neuron.IFNode(step_mode="m", **common)
        ours = IF(surrogate=ours_of, **own).double()
    else:
        theirs = neuron.LIFNode(tau=2.0, decay_input=decay, step_mode="m", **common)
        ours = LIF(tau=2.0, input_decay=decay, surrogate=ours_of, **own).double()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    found = []
    for run in (theirs, ours):
        y = x.clone().requires_grad_()
        found.append(torch.autograd.grad((run(y) * weight).sum(), y)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("reset", "mechanism"), [("soft", "subtract"), ("hard", "zero")])
@pytest.mark.parametrize("theta", [1.0, 0.75])
@pytest.mark.parametrize("beta", [0.5, 0.75])
def test_leaky_of_snntorch(
    snn: ModuleType, reset: str, mechanism: str, theta: float, beta: float
) -> None:
    """Below twice the threshold: above it snnTorch subtracts a second time at the next step."""
    theirs = snn.Leaky(beta=beta, threshold=theta, reset_mechanism=mechanism, reset_delay=False)
    ours = LIF(tau=1 / (1 - beta), threshold=theta, reset=reset)
    x, spikes = currents().clamp_max(0.95 * theta * (2 - beta)), []
    potential = theirs.init_leaky()
    for current in x:
        spike, potential = theirs(current, potential)
        spikes.append(spike)
    assert torch.equal(scan(ours, x).spikes, torch.stack(spikes))
