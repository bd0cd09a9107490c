"""Spiking neurons: one pure step, one scan over time.

State lives inside a scan and dies with it, so there is nothing to reset. What a neuron hands to
the next layer is theta * s, with s its binary spike; a potential is the one before the reset.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from spikelet.dither import pattern
from spikelet.errors import UserError
from spikelet.late import collected
from spikelet.spike import Sigmoid, Surrogate, fire

Reset = Literal["soft", "hard"]
SMALLEST_THRESHOLD = 1e-3


class Scan(NamedTuple):
    """What a neuron did over time: spikes and pre-reset potential, both "T B ..."."""

    spikes: Tensor
    potential: Tensor


def per_channel(value: Tensor, current: Tensor) -> Tensor:
    """A scalar, "C" or "C ...", shaped to broadcast against a current "B C ..."."""
    return value if value.ndim != 1 else value.reshape(-1, *[1] * (current.ndim - 2))


class Neuron(nn.Module):
    """A spiking neuron: `start` and `step`; everything else follows from them.

    Args:
        threshold: theta, one for the layer or one per channel.
        initial: potential before the first step, in the unit of the potential.
        learn_threshold: whether theta is a parameter; it is kept above 0.001.
    """

    elementwise: ClassVar[bool] = True
    """Whether a neuron's spikes depend on its own current alone; if not, `rate` refuses it."""
    delay: int = 0
    """How many steps after the layer before it a neuron begins (`collected`)."""
    step_bias: bool = False
    """Whether a current is learned that is added at each step (`arriving`)."""
    threshold: Tensor
    initial: Tensor
    step_biases: Tensor | None

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        initial: float | Tensor = 0.0,
        learn_threshold: bool = False,
    ) -> None:
        super().__init__()
        self.learn_threshold = learn_threshold
        self.register_parameter("step_biases", None)
        self.set_threshold(torch.as_tensor(threshold), torch.as_tensor(initial))

    def set_threshold(self, threshold: Tensor, initial: Tensor) -> None:
        """Replaces threshold and initial potential, each a scalar or "C".

        Raises:
            UserError: if a threshold is not positive.
        """
        threshold, initial = (x.detach().clone().float() for x in (threshold, initial))
        if not bool((threshold > 0).all()):
            raise UserError(
                f"threshold = {float(threshold.min()):g}", "expected above 0", "raise it"
            )
        if self.learn_threshold:
            self.threshold = nn.Parameter(threshold)
        else:
            self.register_buffer("threshold", threshold)
        self.register_buffer("initial", initial)

    def set_step_biases(self, bias: Tensor) -> None:
        """Replaces the current that is added at each step, "T" or "T C"; beyond T there is none."""
        self.step_bias = True
        self.step_biases = nn.Parameter(bias.detach().clone().float())

    @property
    def theta(self) -> Tensor:
        """The threshold, positive, a scalar or "C"."""
        if self.learn_threshold:
            return self.threshold.clamp_min(SMALLEST_THRESHOLD)
        return self.threshold

    @abstractmethod
    def start(self, current: Tensor) -> Any:
        """The state before the first step, given a current "B ..." for shape, dtype, device."""

    @abstractmethod
    def step(self, state: Any, current: Tensor) -> tuple[Any, Tensor, Tensor]:
        """One time step: (next state, spikes "B ...", pre-reset potential "B ...")."""

    def forward(self, currents: Tensor) -> Tensor:
        """Currents "T B ..." to what propagates, theta * s, "T B ..."."""
        return scan(self, currents).spikes * per_channel(self.theta, currents[0])


def arriving(neuron: Neuron, currents: Tensor) -> Tensor:
    """What a neuron integrates at each step of currents "T B ...": late ones and its own bias."""
    currents = collected(currents, neuron.delay)
    if neuron.step_biases is None:
        return currents
    bias, steps = neuron.step_biases.to(currents), len(currents)
    beyond = bias.new_zeros(max(steps - len(bias), 0), *bias.shape[1:])
    bias = torch.cat([bias[:steps], beyond])
    shape = (steps, 1, *bias.shape[1:], *[1] * (currents.ndim - 1 - bias.ndim))
    return currents + bias.reshape(shape)


def scan(neuron: Neuron, currents: Tensor) -> Scan:
    """Runs a neuron over currents "T B ..." from rest; half precision is integrated in fp32."""
    if currents.dtype in (torch.float16, torch.bfloat16):
        currents = currents.float()
    currents = arriving(neuron, currents)
    state = neuron.start(currents[0])
    spikes, potentials = [], []
    for current in currents.unbind(0):
        state, spike, potential = neuron.step(state, current)
        spikes.append(spike)
        potentials.append(potential)
    return Scan(torch.stack(spikes), torch.stack(potentials))


def duplicate(neuron: Neuron) -> Neuron:
    """An independent copy of a neuron, for one call site."""
    return copy.deepcopy(neuron)


class Integrator(Neuron):
    """Charge, fire, reset: what IF and LIF share.

    h = leak (v - v_reset) + v_reset + gain I;  u = h / theta - 1;  s = H(u);
    soft reset v = h - theta s, hard reset v = (1 - s) h + s v_reset.

    With `signed`, a spike of -1 leaves where h < 0 while the spikes sent so far sum to more than
    0: it takes a spike back.
    """

    def __init__(
        self,
        threshold: float | Tensor,
        initial: float | Tensor,
        learn_threshold: bool,
        reset: Reset,
        v_reset: float,
        detach: bool | None,
        surrogate: Surrogate | None,
        signed: bool,
        dither: float,
    ) -> None:
        super().__init__(threshold, initial, learn_threshold)
        for name, value in (("signed", signed), ("learn_threshold", learn_threshold)):
            if not isinstance(value, bool):
                raise UserError(f"{name} = {value!r}", "expected True or False", "choose one")
        if not isinstance(dither, float | int) or not 0 <= dither <= 1:
            what = "expected a share of the threshold, 0 to 1"
            raise UserError(f"dither = {dither!r}", what, "try 0.125, or 0 for none")
        if reset not in ("soft", "hard"):
            raise UserError(f"reset = {reset!r}", "expected 'soft' or 'hard'", "choose one")
        if signed and reset == "hard":
            raise UserError("signed = True", "signed spikes need a soft reset", "set reset='soft'")
        self.reset: Reset = reset
        self.v_reset = v_reset if reset == "hard" else 0.0
        self.surrogate = surrogate if surrogate is not None else Sigmoid()
        self.signed = signed
        self.detach_reset = detach
        self.dither = float(dither)

    @property
    @abstractmethod
    def leak(self) -> float | Tensor:
        """The factor that the potential keeps from one step to the next."""

    @property
    @abstractmethod
    def gain(self) -> float | Tensor:
        """The factor of the input current."""

    @property
    def detached(self) -> bool:
        """Whether the reset is a constant in the backward pass.

        Unless told otherwise only where leak <= 0.5: without a leak the detached slope of the
        mean rate grows with the number of steps.
        """
        if self.detach_reset is not None:
            return self.detach_reset
        return float(self.leak) <= 0.5

    def beginning(self, current: Tensor) -> Tensor:
        """The potential before the first step of a current "B C ...": a scalar, "C" or "C ...".

        v(0) = initial + theta dither p, with p the `pattern` of ordered dither.
        """
        if not self.dither or current.ndim < 3:
            return self.initial
        theta, initial = (per_channel(x.detach(), current) for x in (self.theta, self.initial))
        return initial + theta * self.dither * pattern(current)

    def given(self, current: Tensor, steps: int) -> Tensor:
        """What T steps of a current "B C ..." are added to: v(0) and the biases of these steps."""
        first = self.beginning(current)
        if self.step_biases is None:
            return first
        total = self.step_biases[:steps].sum(0).to(first)
        return per_channel(first, current) + per_channel(total, current)

    def start(self, current: Tensor) -> tuple[Tensor, ...]:
        first = per_channel(self.beginning(current), current).to(current)
        potential = torch.zeros_like(current) + first
        return (potential, torch.zeros_like(current)) if self.signed else (potential,)

    def step(
        self, state: tuple[Tensor, ...], current: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        theta = per_channel(self.theta, current).to(current)
        rest = self.v_reset
        h = rest + self.leak * (state[0] - rest) if rest else self.leak * state[0]
        h = h + self.gain * current
        s = fire(h / theta - 1, self.surrogate)
        if self.signed:
            s = s - (1 - fire(h / theta, self.surrogate)) * (state[1] > 0)
        r = s.detach() if self.detached else s
        v = h - theta * r if self.reset == "soft" else h * (1 - r) + rest * r
        sent = (state[1] + s.detach(),) if self.signed else ()
        return (v, *sent), s, h


@final
class IF(Integrator):
    """Integrate and fire: leak 1, gain 1; the reset is in the gradient unless `detach` is true.

    Args:
        threshold: theta > 0, a scalar or one per channel.
        initial: potential before the first step.
        learn_threshold: whether theta is learned.
        reset: "soft" subtracts theta, "hard" returns to v_reset.
        v_reset: potential after a hard reset.
        detach: whether the reset is a constant in the backward pass; None decides by the leak.
        surrogate: derivative of the spike with respect to u = h / theta - 1.
        signed: whether a spike of -1 may take back an earlier one.
        dither: over which share of theta initial potentials of neighbouring neurons are spread.
        delay: how many steps after the layer before it the neuron begins to fire. Until then it
            collects its input, so that fewer spikes are sent that later input does not justify.
            It still has T steps; a chain of L such layers answers delay L steps later, unless
            layers run one after the other anyway. With T - 1 or more it knows its whole input
            before it fires: what it sends is then exactly `quantised` (docs/delay.md).
        step_bias: whether a current is learned for each step and channel, as batch norms of their
            own for each step have one (BNTT, Kim & Panda, 2021, arXiv 2010.01729; TEBN, Duan et
            al., NeurIPS 2022). `convert` starts it at 0. Its gradient is one through time: `bptt`.
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        initial: float | Tensor = 0.0,
        learn_threshold: bool = False,
        reset: Reset = "soft",
        v_reset: float = 0.0,
        detach: bool | None = None,
        surrogate: Surrogate | None = None,
        signed: bool = False,
        dither: float = 0.0,
        delay: int = 0,
        step_bias: bool = False,
    ) -> None:
        super().__init__(
            threshold, initial, learn_threshold, reset, v_reset, detach, surrogate, signed, dither
        )
        if not isinstance(step_bias, bool):
            raise UserError(f"step_bias = {step_bias!r}", "expected True or False", "choose one")
        if step_bias and delay:
            what = "a neuron that begins late has no step to which a bias belongs"
            raise UserError("step_bias = True", what, "set delay=0")
        self.step_bias = step_bias
        if not isinstance(delay, int) or isinstance(delay, bool) or delay < 0:
            what = "expected a whole number of steps, 0 or more"
            raise UserError(f"delay = {delay!r}", what, "try 1, or 0 for none")
        self.delay = delay

    @property
    def leak(self) -> float:
        return 1.0

    @property
    def gain(self) -> float:
        return 1.0


@final
class LIF(Integrator):
    """Leaky integrate and fire: leak 1 - 1/tau; gain 1, or 1/tau with `input_decay`.

    Args:
        tau: membrane time constant in steps, above 1; 1.25 gives the leak factor 0.2 of
            rate-based backpropagation.
        input_decay: whether the input current is divided by tau.
        threshold, initial, learn_threshold, reset, v_reset, detach, surrogate, signed: as in IF.
        dither: as in IF.
    """

    def __init__(
        self,
        tau: float = 2.0,
        input_decay: bool = False,
        threshold: float | Tensor = 1.0,
        initial: float | Tensor = 0.0,
        learn_threshold: bool = False,
        reset: Reset = "soft",
        v_reset: float = 0.0,
        detach: bool | None = None,
        surrogate: Surrogate | None = None,
        signed: bool = False,
        dither: float = 0.0,
    ) -> None:
        super().__init__(
            threshold, initial, learn_threshold, reset, v_reset, detach, surrogate, signed, dither
        )
        if tau <= 1:
            raise UserError(f"tau = {tau}", "expected more than 1 step", "raise it or use IF")
        self.tau = tau
        self.input_decay = input_decay

    @property
    def leak(self) -> float:
        return 1 - 1 / self.tau

    @property
    def gain(self) -> float:
        return 1 / self.tau if self.input_decay else 1.0


@final
class PLIF(Integrator):
    """LIF whose leak is learned: 1 - 1/tau with 1/tau = sigmoid(w), one w for the layer.

    Fang et al., 2021 (arXiv 2007.05785), who always divide the input by tau and reset hard: set
    `input_decay` and `reset="hard"` for that. As w is a scalar parameter, it is never decayed.

    Args:
        tau: membrane time constant in steps at the start, above 1.
        input_decay: whether the input current is divided by tau, too.
        threshold, initial, learn_threshold, reset, v_reset, surrogate, signed, dither: as in IF.
        detach: as in IF; None decides once, by the leak at the start, not anew as w is learned.
    """

    def __init__(
        self,
        tau: float = 2.0,
        input_decay: bool = False,
        threshold: float | Tensor = 1.0,
        initial: float | Tensor = 0.0,
        learn_threshold: bool = False,
        reset: Reset = "soft",
        v_reset: float = 0.0,
        detach: bool | None = None,
        surrogate: Surrogate | None = None,
        signed: bool = False,
        dither: float = 0.0,
    ) -> None:
        if tau <= 1:
            raise UserError(f"tau = {tau}", "expected more than 1 step", "raise it or use IF")
        detach = 1 - 1 / tau <= 0.5 if detach is None else detach
        super().__init__(
            threshold, initial, learn_threshold, reset, v_reset, detach, surrogate, signed, dither
        )
        self.input_decay = input_decay
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    @property
    def tau(self) -> Tensor:
        """The time constant that w stands for now, in steps, a scalar."""
        return 1 + torch.exp(-self.w)

    @property
    def leak(self) -> Tensor:
        return torch.sigmoid(-self.w)

    @property
    def gain(self) -> float | Tensor:
        return torch.sigmoid(self.w) if self.input_decay else 1.0
