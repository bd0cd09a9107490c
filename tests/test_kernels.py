"""The GPU kernel of the scan against `slopes.eligibility`, natively or in Triton's interpreter."""

from __future__ import annotations

import importlib
import importlib.util
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spikelet.convert import convert
from spikelet.encode import repeat
from spikelet.execute import rate
from spikelet.neuron import IF, LIF, Integrator
from spikelet.slopes import by_jvp, closed_form, eligibility
from spikelet.spike import Arctangent, Rectangle, Sigmoid, Surrogate, Triangle

triton: Any = pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SURROGATES = [Sigmoid(3.0), Arctangent(2.5), Triangle(0.8), Rectangle(0.9)]
# hard, detached, signed, rest
KINDS = {
    "soft": (False, False, False, 0.0),
    "soft, detached": (False, True, False, 0.0),
    "hard": (True, False, False, 0.0),
    "hard, detached": (True, True, False, 0.0),
    "hard to -0.25": (True, False, False, -0.25),
    "signed": (False, False, True, 0.0),
    "signed, detached": (False, True, True, 0.0),
}
DECAYS = {"IF": (1.0, 1.0), "LIF": (0.6, 0.7)}


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """The module as a GPU runs it; without one a copy of it that Triton interprets."""
    ours = importlib.import_module("spikelet.kernels")
    if DEVICE == "cuda":
        return ours
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        spec = importlib.util.spec_from_file_location("interpreted_kernels", ours.__file__)
        assert spec is not None and spec.loader is not None
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
    return copy


def currents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.4 + torch.randn(*shape, generator=generator)).to(DEVICE, dtype)


def channels_last(x: Tensor) -> Tensor:
    """The same "T B C ...", each step with its channels side by side in memory."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def thresholds(channels: int) -> tuple[Tensor, Tensor]:
    theta = torch.linspace(0.5, 1.3, channels, device=DEVICE)
    return theta, 0.3 * theta


def settings(
    surrogate: Surrogate, kind: str = "soft", decay: str = "IF", **more: object
) -> dict[str, Any]:
    hard, detached, signed, rest = KINDS[kind]
    leak, gain = DECAYS[decay]
    reset = {"hard": hard, "detached": detached, "signed": signed, "rest": rest}
    return {"leak": leak, "gain": gain, "surrogate": surrogate, **reset, **more}


def slow(
    x: Tensor, theta: Tensor, start: Tensor, steps: int, with_: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Output "T B C ..." and slope "B C ..." of the eager recursion in fp32."""
    shape = x.shape[1:]
    shaped = (value.expand(shape[1]).reshape(-1, 1) for value in (theta, start))
    options = {name: with_[name] for name in ("leak", "gain", "rest", "hard", "detached", "signed")}
    folded = x.float().reshape(len(x), shape[0], shape[1], -1)
    output, slope, _ = eligibility(
        folded, *shaped, steps, slope_of=with_["surrogate"].slope, **options
    )
    return output.reshape(steps, *shape), slope.reshape(shape)


def agree(
    kernels: ModuleType, x: Tensor, theta: Tensor, start: Tensor, steps: int, **with_: Any
) -> Tensor:
    """Equal spikes, close slopes, the mean of what was sent, all laid out as the currents are."""
    output, mean, slope = kernels.scan(x, theta, start, steps, **with_)
    affine = with_.get("scale") is not None
    seen = x.float()
    if affine:
        seen = seen * spread(with_["scale"], x) + spread(with_["shift"], x)
    expected, slopes = slow(seen, theta, start, steps, with_)
    dtype = with_.get("dtype") or x.dtype
    assert output.dtype == mean.dtype == dtype and slope.dtype == torch.float32
    assert torch.equal(output, expected.to(dtype))
    torch.testing.assert_close(mean, output.float().mean(0).to(dtype))
    torch.testing.assert_close(slope, slopes, rtol=2e-5, atol=1e-5)
    if x[0].movedim(1, -1).is_contiguous() and not x[0].is_contiguous():
        assert all(y.movedim(1, -1).is_contiguous() for y in (output[0], mean, slope))
    return output


def spread(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.ndim - 3))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_every_neuron(kernels: ModuleType, surrogate: Surrogate, kind: str, decay: str) -> None:
    x = currents(4, 2, 5, 3, 3)
    for laid_out in (x, channels_last(x)):
        output = agree(kernels, laid_out, *thresholds(5), 4, **settings(surrogate, kind, decay))
        assert 0.05 < float((output != 0).float().mean()) < 0.95
        assert (float(output.min()) < 0) is KINDS[kind][2]


@pytest.mark.parametrize(
    ("steps", "kind"),
    [*product((1, 2, 3, 5), ("soft", "hard", "signed")), (16, "soft"), (33, "signed")],
)
def test_every_number_of_steps(kernels: ModuleType, steps: int, kind: str) -> None:
    """Of changing and of constant currents; the last of them is a loop, not unrolled."""
    theta, start = thresholds(3)
    for given in (steps, 1):
        x = currents(given, 2, 3, 2, 2)
        for laid_out in (x, channels_last(x)):
            agree(kernels, laid_out, theta, start, steps, **settings(Sigmoid(), kind))


def test_a_potential_at_the_threshold_fires(kernels: ModuleType) -> None:
    """The next float above and below theta, and theta itself, whatever h / theta is rounded to."""
    theta = 0.1 + 2 * torch.rand(400, generator=torch.Generator().manual_seed(0))
    near = [theta, *(torch.nextafter(theta, torch.tensor(to)) for to in (0.0, 9.0))]
    x = torch.stack(near).unsqueeze(0).to(DEVICE)
    start = torch.tensor(0.0, device=DEVICE)
    output = agree(kernels, x, theta.to(DEVICE), start, 1, **settings(Rectangle(), "hard"))
    assert (output[0] > 0).sum(1).tolist() == [400, 0, 400]


SHAPES = [(1, 1), (3, 7), (2, 3, 5, 7), (1, 40, 3, 2), (2, 16, 2, 4), (1, 2, 9), (2, 3, 2, 2, 3)]


@pytest.mark.parametrize("tile", [32, 1024])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(kernels: ModuleType, shape: tuple[int, ...], tile: int) -> None:
    """Few and many programs, full and ragged tiles; thresholds per channel and for the layer."""
    x = currents(2, *shape)
    scalar = torch.tensor(0.7, device=DEVICE), torch.tensor(0.2, device=DEVICE)
    for theta, start in (thresholds(shape[1]), scalar, (thresholds(shape[1])[0], scalar[1])):
        for laid_out in (x, channels_last(x)):
            agree(kernels, laid_out, theta, start, 2, **settings(Sigmoid(), tile=tile))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["soft", "hard", "signed"])
def test_half_precision(kernels: ModuleType, dtype: torch.dtype, kind: str) -> None:
    """State and slope are in fp32; what is sent is rounded, to the asked precision if there is.

    The thresholds are exact in bf16, as the interpreter cuts where a GPU rounds.
    """
    x = currents(3, 2, 4, 3, 3, dtype=dtype)
    theta, start = (value.bfloat16().float() for value in thresholds(4))
    for asked in (None, torch.float32, dtype):
        for laid_out in (x, channels_last(x)):
            with_ = settings(Arctangent(), kind, dtype=asked)
            agree(kernels, laid_out, theta, start, 3, **with_)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_affine_map_of_a_batch_norm(kernels: ModuleType, steps: int) -> None:
    scale = torch.tensor([0.5, -1.5, 2.0], device=DEVICE)
    shift = torch.tensor([0.3, 0.9, -0.2], device=DEVICE)
    scalar = torch.tensor(0.7, device=DEVICE), torch.tensor(0.2, device=DEVICE)
    for given in (1, steps):
        x = currents(given, 2, 3, 3, 3)
        for theta, start in (thresholds(3), scalar):
            for laid_out in (x, channels_last(x)):
                with_ = settings(Triangle(), scale=scale, shift=shift)
                agree(kernels, laid_out, theta, start, steps, **with_)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["soft", "hard", "signed"])
def test_a_second_current_is_added(kernels: ModuleType, kind: str, mapped: bool) -> None:
    """With and without an affine map, in the layout of the first or another one."""
    x, y = currents(3, 2, 5, 3, 3), currents(3, 2, 5, 3, 3, seed=1)
    scale, shift = (torch.linspace(a, b, 5, device=DEVICE) for a, b in ((0.5, 1.5), (-0.2, 0.3)))
    whole = x + (y * spread(scale, y) + spread(shift, y) if mapped else y)
    given = {"other_scale": scale, "other_shift": shift} if mapped else {}
    theta, start = thresholds(5)
    with_ = settings(Sigmoid(), kind)
    expected = kernels.scan(whole, theta, start, 3, **with_)
    for first, second in product((x, channels_last(x)), (y, channels_last(y))):
        found = kernels.scan(first, theta, start, 3, other=second, **given, **with_)
        for one, all_at_once in zip(found, expected, strict=True):
            torch.testing.assert_close(one, all_at_once, rtol=2e-5, atol=1e-5)
        assert torch.equal(found[0], expected[0])


def test_other_layouts_are_copied_or_read_once(kernels: ModuleType) -> None:
    """Every second step, a transposed image, an expanded one."""
    theta, start = thresholds(3)
    with_ = settings(Sigmoid(), "hard")
    agree(kernels, currents(6, 2, 3, 4, 4)[::2], theta, start, 3, **with_)
    agree(kernels, currents(3, 2, 3, 4, 5).transpose(3, 4), theta, start, 3, **with_)
    agree(kernels, currents(3, 4, 3, 4, 4)[:, ::2], theta, start, 3, **with_)
    still = currents(1, 2, 3, 4, 4).expand(3, -1, -1, -1, -1)
    agree(kernels, still, theta, start, 3, **with_)


def test_inference_needs_no_slope(kernels: ModuleType) -> None:
    x, with_ = currents(3, 2, 3, 4, 4), settings(Sigmoid(), "signed")
    output, mean, slope = kernels.scan(x, *thresholds(3), 3, **with_)
    silent = kernels.scan(x, *thresholds(3), 3, **with_, need_slope=False)
    assert slope is not None and silent[2] is None
    assert torch.equal(silent[0], output) and torch.equal(silent[1], mean)


def test_a_slope_in_half_precision(kernels: ModuleType) -> None:
    x, with_ = currents(3, 2, 3, 4, 4), settings(Sigmoid())
    expected = kernels.scan(x, *thresholds(3), 3, **with_)
    found = kernels.scan(x, *thresholds(3), 3, **with_, slope_dtype=torch.bfloat16)
    assert torch.equal(found[0], expected[0]) and found[2].dtype == torch.bfloat16
    torch.testing.assert_close(found[2].float(), expected[2], rtol=1e-2, atol=1e-3)


def test_an_empty_batch(kernels: ModuleType) -> None:
    output, mean, slope = kernels.scan(
        currents(2, 0, 3, 4, 4), *thresholds(3), 2, **settings(Sigmoid())
    )
    assert output.shape == (2, 0, 3, 4, 4) and mean.shape == slope.shape == (0, 3, 4, 4)


NEURONS = [
    IF(surrogate=Sigmoid()),
    IF(reset="hard", v_reset=0.1, surrogate=Triangle()),
    LIF(tau=3.0, surrogate=Arctangent(), detach=False),
    LIF(tau=1.25, input_decay=True),
    IF(signed=True),
    IF(dither=0.5),
]


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: type(n).__name__)
def test_the_slope_is_the_derivative_of_the_scan(kernels: ModuleType, neuron: Integrator) -> None:
    """Against one Jacobian-vector product through `step` in float64."""
    x = currents(5, 2, 3, 4, 4)
    neuron = neuron.to(DEVICE)
    neuron.set_threshold(*thresholds(3))
    expected = by_jvp(neuron.to(DEVICE), x.double())
    output, _, slope = kernels.scan(
        x, neuron.theta, neuron.beginning(x[0]), 5,
        leak=neuron.leak, gain=neuron.gain, rest=neuron.v_reset, surrogate=neuron.surrogate,
        hard=neuron.reset == "hard", detached=neuron.detached, signed=neuron.signed,
    )  # fmt: skip
    torch.testing.assert_close(output, expected.output.float())
    torch.testing.assert_close(slope, expected.slope.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("laid_out", [Tensor.contiguous, channels_last])
@pytest.mark.parametrize("kind", ["soft", "hard to -0.25", "signed"])
def test_a_start_for_each_place(kernels: ModuleType, kind: str, laid_out: Any) -> None:
    """Ordered dither, with tiles that divide neither images nor rows."""
    hard, detached, signed, rest = KINDS[kind]
    reset: Any = "hard" if hard else "soft"
    neuron = IF(reset=reset, v_reset=rest, detach=detached, signed=signed, dither=0.5).to(DEVICE)
    neuron.set_threshold(*thresholds(3))
    x = laid_out(currents(4, 3, 3, 5, 4))
    given = settings(neuron.surrogate, kind)
    output, _, slope = kernels.scan(
        x, neuron.theta, neuron.beginning(x[0]), 4, tile=16, warps=1, **given
    )
    expected = closed_form(neuron, x, 4)
    assert torch.equal(output, expected.output)
    torch.testing.assert_close(slope, expected.slope, rtol=2e-5, atol=1e-5)


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3),
    ).to(DEVICE)  # fmt: skip


@pytest.mark.parametrize("still", [True, False])
def test_rate_with_the_kernel(
    kernels: ModuleType, still: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same logits and gradients through a whole network as without it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images = currents(8, 2, 8, 8)
    student = convert(small_net(), IF(), steps=4, calibrate=images)
    x = repeat(images, 4) if still else currents(4, 8, 2, 8, 8)
    labels, found, calls = torch.arange(8, device=DEVICE) % 3, [], []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return kernels.scan(*args, **options)

    ours = importlib.import_module("spikelet.kernels")
    for fuse in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(ours, "scan", counted if DEVICE == "cpu" else ours.scan)
            patch.setattr(ours, "usable", lambda *_, fuse=fuse: fuse)
            logits = rate(student, x, fuse=fuse).logits
        student.zero_grad()
        cross_entropy(logits.mean(0), labels).backward()
        found.append([logits, *[p.grad.clone() for p in student.parameters()]])
    assert len(calls) == (2 if DEVICE == "cpu" else 0)
    for slow_one, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow_one, rtol=1e-4, atol=1e-5)


def test_where_it_can_be_used() -> None:
    from spikelet.kernels import usable

    class Own(Surrogate):
        """A slope the kernel does not know."""

        def primitive(self, u: Tensor) -> Tensor:
            return u

        def slope(self, u: Tensor) -> Tensor:
            return torch.ones_like(u)

    assert not usable(IF(), torch.zeros(2, 1, 1))
    assert usable(IF(), currents(2, 1, 1)) is (DEVICE == "cuda")
    assert not usable(IF(surrogate=Own()), currents(2, 1, 1))
    assert not usable(IF(), currents(2, 1, 1).double())


COMPILED = [
    {"SURROGATE": "sigmoid", "ALONG": "rows"},
    {"SURROGATE": "rectangle", "ALONG": "columns", "HARD": True, "LEAKY": True},
    {"SURROGATE": "arctangent", "ALONG": "none", "SIGNED": True, "STATIC": True},
    {"SURROGATE": "triangle", "ALONG": "columns", "AFFINE": True, "DETACHED": True},
    {"SURROGATE": "sigmoid", "ALONG": "columns", "PLACED": True},
    {"SURROGATE": "sigmoid", "ALONG": "rows", "SLOPED": False, "STEPS": 40, "UNROLL": 1},
    {"SURROGATE": "sigmoid", "ALONG": "columns", "AFFINE": True, "SUMMED": True, "MAPPED": True},
]


@pytest.mark.parametrize("chosen", COMPILED, ids=lambda c: f"{c['SURROGATE']} {c['ALONG']}")
def test_it_compiles_for_a_gpu(tmp_path: Path, chosen: dict[str, object]) -> None:
    """What the interpreter lets pass a compiler may refuse; this needs no GPU, only Triton's."""
    from triton.backends.compiler import GPUTarget

    kernel = importlib.import_module("spikelet.kernels")._scan
    flags = dict.fromkeys(
        ("STATIC", "AFFINE", "SUMMED", "MAPPED", "LEAKY", "HARD", "DETACHED", "SIGNED", "PLACED"),
        False,
    ) | {"SLOPED": True, "STEPS": 3, "UNROLL": 3, "ROWS": 16, "COLUMNS": 64}  # fmt: skip
    flags |= chosen
    kinds = ["*bf16"] * 4 + ["*fp32"] * 7 + ["i32"] * 5 + ["fp32"] * 4
    names = kernel.arg_names
    signature = dict.fromkeys(names, "constexpr") | dict(zip(names, kinds, strict=False))
    constants = {(names.index(name),): value for name, value in flags.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert "st.global" in made.asm["ptx"]


@pytest.mark.skipif(DEVICE == "cpu", reason="more than 2^31 elements need a GPU")
def test_places_beyond_32_bits(kernels: ModuleType) -> None:
    steps, batch = 5, 2**29 // 2**16
    x = torch.empty(steps, batch, 64, 32, 32, device=DEVICE, dtype=torch.bfloat16).normal_()
    assert x.numel() > 2**31
    with_ = settings(Sigmoid())
    output, mean, slope = kernels.scan(x, *thresholds(64), steps, **with_)
    few = kernels.scan(x[:, -2:].contiguous(), *thresholds(64), steps, **with_)
    assert torch.equal(output[:, -2:], few[0])
    assert torch.equal(mean[-2:], few[1]) and torch.equal(slope[-2:], few[2])
