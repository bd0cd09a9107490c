"""Pairwise relations (SuperSNN): acceptance test 9, and every form by loops."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from small import gradients, images, network, student
from spikelet.distill import Distiller
from spikelet.encode import Direct
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.terms.relation import Form, Relation, gram, in_time, relation
from spikelet.terms.term import Step
from spikelet.trace import Tap, Trace

FORMS: tuple[Form, ...] = ("cosine", "centred", "similarity-preserving", "distance", "angle")
LABELS = torch.tensor([0, 1, 2, 0])
Rows = list[list[float]]
Matrix = list[list[float]]


def features(width: int, seed: int, batch: int = 5, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, width, size, size, generator=generator, dtype=torch.float64)


def rotation(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    q, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q


def turned(f: Tensor) -> Tensor:
    return torch.einsum("dc,bchw->bdhw", rotation(f.shape[1]), f)


# ---- each form, one pair or triplet at a time ---------------------------------------------


def pooled(f: Tensor, pool: int) -> Rows:
    """Means over pool x pool windows of each channel; 0 keeps every position."""
    batch, width, size, _ = f.shape
    pool = pool or size
    side = size // pool
    windows = list(itertools.product(range(width), range(pool), range(pool)))
    return [
        [
            float(f[b, c, i * side : (i + 1) * side, j * side : (j + 1) * side].mean())
            for c, i, j in windows
        ]
        for b in range(batch)
    ]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def away(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def cosine_matrix(rows: Rows) -> Matrix:
    return [[dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for b in rows] for a in rows]


def centred_matrix(rows: Rows) -> Matrix:
    """H K H with H = 1 - 1/B entry by entry, then divided by its Frobenius norm."""
    n = len(rows)
    k = [[dot(a, b) for b in rows] for a in rows]
    h = [[(i == j) - 1 / n for j in range(n)] for i in range(n)]
    span = range(n)
    m = [[sum(h[i][a] * k[a][b] * h[b][j] for a in span for b in span) for j in span] for i in span]
    norm = math.sqrt(sum(v * v for row in m for v in row))
    return [[v / norm for v in row] for row in m]


def preserving_matrix(rows: Rows) -> Matrix:
    k = [[dot(a, b) for b in rows] for a in rows]
    return [[v / math.sqrt(dot(row, row)) for v in row] for row in k]


def distance_matrix(rows: Rows) -> Matrix:
    d = [[math.sqrt(dot(away(a, b), away(a, b))) for b in rows] for a in rows]
    mean = sum(map(sum, d)) / (len(rows) * (len(rows) - 1))
    return [[v / mean for v in row] for row in d]


def angle(rows: Rows, i: int, j: int, k: int) -> float:
    a, b = away(rows[j], rows[i]), away(rows[k], rows[i])
    if i in (j, k):
        return 0.0
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def by_loops(student: Tensor, teacher: Tensor, pool: int, form: Form) -> float:
    if form == "similarity-preserving":
        pool = 0
    ours, theirs = pooled(student, pool), pooled(teacher, pool)
    n = len(ours)
    if form == "angle":
        triplets = itertools.product(range(n), repeat=3)
        return sum(huber(angle(ours, *t) - angle(theirs, *t)) for t in triplets) / n**3
    of = {
        "cosine": cosine_matrix,
        "centred": centred_matrix,
        "similarity-preserving": preserving_matrix,
        "distance": distance_matrix,
    }[form]
    a, b = of(ours), of(theirs)
    apart = [a[i][j] - b[i][j] for i in range(n) for j in range(n)]
    if form == "distance":
        return sum(map(huber, apart)) / n**2
    return sum(v * v for v in apart) / (1 if form == "centred" else n**2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pool", [0, 1, 2])
def test_loss_by_loops(pool: int, form: Form) -> None:
    """Widths differ."""
    student, teacher = features(3, 0), features(6, 1)
    expected = by_loops(student, teacher, pool, form)
    assert expected > 1e-5
    assert float(relation(student, teacher, pool, form)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("pool", [0, 1])
def test_centred_is_two_minus_two_cka(pool: int) -> None:
    """CKA in feature space: |Y^T X|^2 / (|X^T X| |Y^T Y|) of centred rows."""
    student, teacher = features(3, 0), features(6, 1)
    x, y = (torch.tensor(pooled(f, pool), dtype=f.dtype) for f in (student, teacher))
    x, y = x - x.mean(0), y - y.mean(0)
    cka = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert float(relation(student, teacher, pool, "centred")) == pytest.approx(
        float(2 - 2 * cka), rel=1e-6
    )


def test_resolutions_may_differ() -> None:
    """Pooled, or not: only matrices of the batch are compared."""
    for form in FORMS:
        for pool in (0, 1, 2):
            value = relation(features(3, 0), features(6, 1, size=8), pool, form)
            assert bool(torch.isfinite(value)), (form, pool)


# ---- what each form does not see ----------------------------------------------------------


def test_invariances() -> None:
    """Acceptance test 9: cosines see neither each image's scale nor a rotation.

    Up to 1e-6 over the energy of a row, which keeps silent ones finite.
    """
    student, teacher = features(4, 0), features(6, 1)
    value = float(relation(student, teacher))
    scale = torch.tensor([0.1, 1.0, 2.0, 7.0, 30.0])[:, None, None, None]
    for changed in (scale * student, turned(student), scale * turned(student)):
        assert float(relation(changed, teacher)) == pytest.approx(value, rel=3e-3)
    for changed in (scale * teacher, turned(teacher), scale * turned(teacher)):
        assert float(relation(student, changed)) == pytest.approx(value, rel=3e-3)


@pytest.mark.parametrize("form", FORMS)
def test_scale_and_rotation(form: Form) -> None:
    """No form sees a common scale or a rotation of either side."""
    student, teacher = features(4, 0), features(6, 1)
    value = float(relation(student, teacher, 1, form))
    for a, b in ((5 * student, teacher), (student, 0.2 * teacher)):
        assert float(relation(a, b, 1, form)) == pytest.approx(value, rel=2e-3)
    for a, b in ((turned(student), teacher), (student, turned(teacher))):
        assert float(relation(a, b, 1, form)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("form", ["centred", "distance", "angle"])
def test_a_common_offset_is_not_seen(form: Form) -> None:
    student, teacher = features(4, 0), features(6, 1)
    value = float(relation(student, teacher, 1, form))
    offset = features(4, 5, batch=1)
    assert float(relation(student + offset, teacher, 1, form)) == pytest.approx(value, rel=1e-4)
    cosines = float(relation(student, teacher))
    assert float(relation(student + offset, teacher)) != pytest.approx(cosines, rel=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_zero_when_equal_up_to_what_is_not_seen(form: Form) -> None:
    f = features(4, 0)
    scale = torch.full((5, 1, 1, 1), 3.0, dtype=f.dtype)
    if form == "cosine":
        scale = torch.tensor([0.5, 1.0, 2.0, 7.0, 3.0])[:, None, None, None]
    wider = torch.cat([scale * turned(f), f * 0], 1)
    assert float(relation(f, f, 1, form)) == 0
    assert float(relation(wider, f, 1, form)) < 1e-10


# ---- silence and coincidence --------------------------------------------------------------


def test_a_silent_image_is_like_no_other() -> None:
    f = features(4, 0)
    f[2] = 0
    g = gram(f, 1)
    assert torch.equal(g[2], torch.zeros(5, dtype=f.dtype))
    assert float(g[0, 0]) == pytest.approx(1, abs=1e-5)


def degenerate(kind: str, dtype: torch.dtype) -> Tensor:
    f = features(4, 0).to(dtype)
    if kind == "one silent":
        f[2] = 0
    elif kind == "all silent":
        f = torch.zeros_like(f)
    elif kind == "two coincide":
        f[3] = f[1]
    elif kind == "two almost coincide":
        f[3] = f[1] * (1 + 1e-6)
    elif kind == "all coincide":
        f = f[:1].expand(5, 4, 4, 4).clone()
    else:
        f = f[:1]
    return f.requires_grad_()


KINDS = ("one silent", "all silent", "two coincide", "two almost coincide", "all coincide", "one")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_degenerate_batches_stay_finite(
    side: str, kind: str, form: Form, dtype: torch.dtype
) -> None:
    """Loss and gradient, of a batch of one image too; no image's gradient drowns the others."""
    odd = degenerate(kind, dtype)
    other = features(6, 1, batch=len(odd)).to(dtype).requires_grad_()
    loss = relation(odd, other, 1, form) if side == "student" else relation(other, odd, 1, form)
    loss.backward()
    assert bool(torch.isfinite(loss))
    for f in (odd, other):
        assert f.grad is not None
        assert bool(torch.isfinite(f.grad).all())
        assert float(f.grad.abs().max()) < 300


@pytest.mark.parametrize("form", FORMS)
def test_single_precision_agrees_with_double(form: Form) -> None:
    """Also where an offset a hundred times the differences is common to all images."""
    student, teacher = features(4, 0) + 100, features(6, 1) + 10
    exact = float(relation(student, teacher, 1, form))
    assert float(relation(student.float(), teacher.float(), 1, form)) == pytest.approx(
        exact, rel=2e-2, abs=1e-9
    )


def test_half_precision_is_left() -> None:
    """Products of near equal features are not taken in bf16."""
    student, teacher = features(4, 0).float(), features(6, 1).float()
    for form in FORMS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = relation(student, teacher, 1, form)
        assert torch.equal(inside, relation(student, teacher, 1, form))
        assert inside.dtype == torch.float32


@pytest.mark.parametrize("form", FORMS)
def test_gradient(form: Form) -> None:
    """Against finite differences; distances without their guard would be off at most by it."""
    teacher = features(3, 1, size=1)
    f = features(2, 0, size=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relation(x, teacher, 1, form), f, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 6)])
def test_vectors_and_lines(shape: tuple[int, ...]) -> None:
    a, b = torch.rand(shape), torch.rand(shape)
    f, g = (torch.nn.functional.normalize(x.flatten(1)) for x in (a, b))
    expected = (g @ g.T - f @ f.T).square().sum() / 25
    assert float(relation(a, b)) == pytest.approx(float(expected), rel=1e-3)


# ---- the term -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_term_sums_over_places(form: Form) -> None:
    term = Relation(on=["a=b", "c"], form=form)
    reads = term.taps([("x", "y")])
    assert reads.student == {"a": ("mean",), "c": ("mean",)}
    assert reads.teacher == {"b": ("mean",), "c": ("mean",)}
    ours = {"a": Tap(features(4, 0)), "c": Tap(features(3, 1))}
    theirs = {"b": Tap(features(6, 2)), "c": Tap(features(3, 3))}
    logits = torch.zeros(1, 5, 2)
    step = Step(Trace(logits, ours), Trace(logits, theirs), torch.zeros(5, dtype=torch.int64))
    own = term.init(type("Binding", (), {"pairs": (("x", "y"),)})())
    expected = by_loops(ours["a"].mean, theirs["b"].mean, 1, form)
    expected = expected + by_loops(ours["c"].mean, theirs["c"].mean, 1, form)
    assert float(term(own, step)) == pytest.approx(float(expected), rel=1e-4)


def timed(term: Relation, execute: object = bptt) -> Distiller:
    return Distiller(
        student("stages", calibrated=True), network("stages"), execute=execute, encode=Direct(3),
        terms={"relation": term}, example=images("stages", 16),
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_time_is_kept(form: Form) -> None:
    """theta * s of each step, side by side, against the teacher's mean repeated at every step."""
    whole = timed(Relation(on=["layer1", "layer3"], form=form, keep_time=True))
    loss, parts = whole(images("stages"), LABELS)
    x = Direct(3)(images("stages"))
    fields = dict.fromkeys(("layer1", "layer3"), ("mean", "spikes"))
    ours, theirs = bptt(whole.student, x, fields), ann(whole.teacher, x, fields.keys())
    modules, expected = dict(whole.student.named_modules()), 0.0
    for place, neuron in (("layer1", "layer1.2"), ("layer3", "layer3.2")):
        theta = modules[neuron].theta.double().reshape(-1, 1, 1)
        spikes = ours.taps[place].spikes
        steps = torch.cat([theta * spikes[t] for t in range(3)], 1).detach()
        repeated = torch.cat([theirs.taps[place].mean] * 3, 1)
        expected += by_loops(steps, repeated, 1, form)
    assert float(parts["relation"]) == pytest.approx(expected, rel=1e-3)
    found = gradients(whole, loss)
    assert float(found["student.layer1.0.weight"].abs().max()) > 0
    assert all(bool(torch.isfinite(g).all()) for g in found.values())


def test_time_matters_to_no_net_with_one_step() -> None:
    term = Relation(on="all")
    values = []
    for kept in (False, True):
        whole = timed(dataclasses.replace(term, keep_time=kept))
        whole.encode = Direct(1)
        values.append(whole(images("stages"), LABELS)[0])
    torch.testing.assert_close(values[0], values[1])


def test_kept_time_needs_steps_and_neurons() -> None:
    assert (Relation().time, Relation(keep_time=True).time) == ("mean", "steps")
    with pytest.raises(UserError, match="bptt"):
        timed(Relation(keep_time=True), rate)
    with pytest.raises(UserError, match="exist at neurons only"):
        timed(Relation(on=["down"], keep_time=True))


def test_amplitude_of_silent_and_signed_channels() -> None:
    """theta is recovered from mean and spikes, channel by channel."""
    theta = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)[:, None, None]
    spikes = torch.zeros(4, 2, 3, 2, 2, dtype=torch.float64)
    spikes[0, :, 0], spikes[1, 1, 1], spikes[3, 0, 0, 0] = 1, -1, -1
    tap = Tap((theta * spikes).mean(0), spikes)
    ours = in_time(tap)
    assert ours.shape == (2, 12, 2, 2)
    for t, b, c in itertools.product(range(4), range(2), range(3)):
        torch.testing.assert_close(ours[b, 3 * t + c], theta[c] * spikes[t, b, c])
    silent = in_time(Tap(tap.mean * 0, spikes * 0))
    assert torch.equal(silent, torch.zeros_like(silent))
