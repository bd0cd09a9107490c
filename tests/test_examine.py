"""Measures wired to finished runs: subjects, each measure's object, files, and the command."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no digits")

from small import images as small_images
from small import network
from small import student as small_student
from spikelet.cli import main
from spikelet.cli import measure as measure_command
from spikelet.data import Dataset, Split, cifar10, digits
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.examine import MEASURES, Tell, chosen, exposure
from spikelet.examine import health as health_of_run
from spikelet.examine import natural as natural_files
from spikelet.examine import noise as noise_of_run
from spikelet.examine import saliency as saliency_of_run
from spikelet.examine import steps as steps_of_run
from spikelet.examine.exposure import planned, way
from spikelet.examine.seeds import matched
from spikelet.examine.subject import Subject, measured_part, subject
from spikelet.examine.table import NEED_ANOTHER, NEED_SPIKES, images_of
from spikelet.examine.work import file_of, finite, work
from spikelet.execute import ann, bptt
from spikelet.graph import capture
from spikelet.measure.corruptions import KINDS
from spikelet.measure.similarity import linear_cka
from spikelet.quantise import quantised
from spikelet.recipe import Recipe
from spikelet.train import load

FEW = ("--data", "test_examine:few", "--model", "small-cnn", "--width", "4", "--epochs", "20")
TRAIN = 200


def few(train: int = TRAIN, validation: int = 20) -> Dataset:
    """A user's own data set: few images of digits."""
    every = digits(train=train, validation=validation)
    test = every.test.at(torch.arange(100))
    return dataclasses.replace(every, name="few", test=test)


def silent(done: int, total: int, words: str) -> None:
    """Takes progress and says nothing, but checks it."""
    assert 0 <= done <= total and words


def telling(_: str) -> AbstractContextManager[Tell]:
    return nullcontext(silent)


def mine(subject: Subject, tell: Tell) -> dict[str, Any]:
    """A user's own measure."""
    tell(1, 1, "counting")
    return {"count": len(subject.dataset.test), "nothing": float("nan")}


def broken(subject: Subject, tell: Tell) -> dict[str, Any]:
    """A user's own measure that does not suit."""
    raise UserError("measure broken", "it never suits", "leave it out")


def crashing(subject: Subject, tell: Tell) -> dict[str, Any]:
    """A user's own measure with a defect."""
    raise ZeroDivisionError("a defect")


def quiet(*words: str) -> int:
    return main([*words, "--quiet"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher and its students for three time steps: hybrid, none, qann, one on other data."""
    folder = tmp_path_factory.mktemp("examine")
    found = {"teacher": folder / "teacher"}
    assert quiet("teach", *FEW, "--out", str(found["teacher"])) == 0
    common = ("--teacher", str(found["teacher"]), "--steps", "3", "--epochs", "1", "--seed", "2")
    common += ("--estimate", "64", "--calibrate", "64")
    plain = ("--execute.fuse", "False")  # nothing to compile
    less = ("--data", "test_examine:few", "--data.train", "150")
    flags = {
        "hybrid": ("--method", "hybrid", *plain),
        "none": ("--method", "none", *plain),
        "qann": ("--method", "qann"),
        "fewer": ("--method", "convert", *plain, *less),
    }
    for name, extra in flags.items():
        found[name] = folder / name
        assert quiet("distill", *common, *extra, "--out", str(found[name])) == 0
    return found


def of(runs: dict[str, Path], name: str = "hybrid", versus: tuple[str, ...] = ()) -> Subject:
    """The subject of a run beside others."""
    loaded = load(runs[name])
    return subject(loaded, loaded.dataset(), [str(runs[each]) for each in versus])


# ---- names --------------------------------------------------------------------------------------


def test_names_are_sorted_and_taken_once() -> None:
    assert chosen(["noise", "steps", "a.b:c", "noise"]) == ("steps", "noise", "a.b:c")
    assert chosen([]) == tuple(MEASURES)
    assert "health" not in chosen([], spiking=False)
    assert "saliency" not in chosen([], spiking=False, compared=False)
    assert set(chosen(["saliency"], spiking=False, compared=False)) == {"saliency"}


@pytest.mark.parametrize(("name", "near"), [("stepz", "steps"), ("enrgy", "energy")])
def test_misspelt_measure_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {near}"):
        chosen(["noise", name])


def test_images_by_default_and_asked_for() -> None:
    assert (images_of("steps", None), images_of("noise", None)) == (None, 1000)
    assert (images_of("steps", 7), images_of("noise", 7)) == (7, 7)
    with pytest.raises(UserError, match="--images 0"):
        images_of("noise", 0)


# ---- subjects -----------------------------------------------------------------------------------


def test_networks_answer_like_their_runs(runs: dict[str, Path]) -> None:
    """Without gradients, with them, and as the run itself predicts."""
    seen = of(runs, versus=("none", "qann"))
    assert [each.name for each in seen.networks] == ["teacher", "none", "qann", "hybrid"]
    assert [each.spiking for each in seen.networks] == [False, True, False, True]
    images, labels = next(seen.batches(40))
    assert len(labels) == 40 and labels.equal(seen.dataset.test.labels[:40])
    for each in seen.networks[1:]:
        assert each.run is not None
        expected = load(each.run).predict(images)
        with torch.no_grad():
            torch.testing.assert_close(each.answer(images), expected)
            torch.testing.assert_close(each.execute(each.net, each.encode(images, 3)).mean_logits,
                                       expected)  # fmt: skip
        moving = images.clone().requires_grad_()
        torch.testing.assert_close(each.answer(moving), expected)
        (slope,) = torch.autograd.grad(each.answer(moving)[:, 0].sum(), moving)
        assert bool(slope.abs().sum() > 0)
    teacher = load(runs["teacher"]).net
    torch.testing.assert_close(seen.networks[0].answer(images), teacher(images))


def test_pixels_normalised_are_the_batches(runs: dict[str, Path]) -> None:
    seen = of(runs)
    for (images, labels), (pixels, same) in zip(seen.batches(30), seen.pixels(30), strict=True):
        assert torch.equal(labels, same)
        assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1
        torch.testing.assert_close(seen.normalise(pixels), images)
    few_images = seen.cut(10)
    assert len(few_images.dataset.test) == 10 and len(seen.dataset.test) == 100
    assert few_images.cut(None) is few_images and few_images.cut(11) is few_images


def test_another_run_is_fed_as_it_was_trained(runs: dict[str, Path]) -> None:
    """It was trained on fewer images, so on another mean; its pixels are the same."""
    seen = of(runs, versus=("fewer",))
    other = seen.others[0]
    own = load(runs["fewer"]).dataset()
    assert own.mean != seen.dataset.mean
    pixels, _ = next(seen.pixels(20))
    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    expected = load(runs["fewer"]).predict((pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
    with torch.no_grad():
        torch.testing.assert_close(
            other.answer(seen.normalise(pixels)), expected, rtol=1e-4, atol=1e-4
        )


def test_names_of_others_are_unique(runs: dict[str, Path]) -> None:
    seen = of(runs, versus=("hybrid", "hybrid", "none", "teacher"))
    names = [each.name for each in seen.networks]
    assert len(set(names)) == len(names) == 6
    assert seen.student.name == "hybrid"


def test_runs_of_other_data_are_refused(runs: dict[str, Path]) -> None:
    loaded = load(runs["hybrid"])
    data = {"kind": "digits"}
    other = dataclasses.replace(loaded, recipe=dataclasses.replace(loaded.recipe, data=data))
    with pytest.raises(UserError, match="other data"):
        subject(other, loaded.dataset(), [str(runs["none"])])
    held = measured_part(loaded.dataset(), "validation")
    assert len(held.test) == 20
    with pytest.raises(UserError, match="other data"):  # its held-out images are others
        subject(loaded, held, [str(runs["fewer"])], split="validation")
    steps = dataclasses.replace(loaded, recipe=dataclasses.replace(loaded.recipe, steps=2))
    with pytest.raises(UserError, match="levels of T = 3"):
        subject(steps, loaded.dataset(), [str(runs["qann"])])


# ---- measures -----------------------------------------------------------------------------------


def test_steps_repeat_the_rows_and_say_more(runs: dict[str, Path]) -> None:
    found = finite(steps_of_run.examine(of(runs, versus=("none", "qann")), silent))
    stored = json.loads((runs["hybrid"] / "results.json").read_text())["rows"]
    key = ("method", "steps", "accuracy", "seed", "split")
    assert [[row[k] for k in key] for row in found["rows"]] == [
        [row[k] for k in key] for row in stored
    ]
    networks = found["networks"]
    assert list(networks) == ["teacher", "none", "qann", "hybrid"]
    mine_, rows = networks["hybrid"], [row for row in found["rows"] if row["method"] == "hybrid"]
    assert [p["accuracy"] for p in mine_["by_steps"]] == [row["accuracy"] for row in rows]
    assert [p["steps"] for p in networks["teacher"]["by_steps"]] == [None]
    assert "agreement" not in networks["teacher"]["by_steps"][0]
    assert [p["steps"] for p in networks["qann"]["by_steps"]] == [3]
    ends = mine_["early_exit"][0], mine_["early_exit"][-1]
    assert [(e["steps"], e["accuracy"]) for e in ends] == [
        (t, mine_["by_steps"][t - 1]["accuracy"]) for t in (1, 3)
    ]
    assert any("exit" in line or "leaving" in line for line in steps_of_run.say(found))


def test_agreement_by_asking_both(runs: dict[str, Path]) -> None:
    found = steps_of_run.examine(of(runs), silent)["networks"]["hybrid"]["by_steps"][1]
    images, labels = next(of(runs).batches(100))
    ours = load(runs["hybrid"]).predict(images, steps=2).argmax(1)
    theirs = load(runs["teacher"]).predict(images).argmax(1)
    equal = [a == b for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    right = (theirs == labels).tolist()
    assert found["agreement"] == pytest.approx(sum(equal) / 100)
    both = sum(e and r for e, r in zip(equal, right, strict=True))
    assert found["agreement_where_right"] == pytest.approx(both / sum(right))


@pytest.fixture(scope="module")
def noise(runs: dict[str, Path]) -> dict[str, Any]:
    """The run beside itself, and beside a quantised network."""
    return finite(noise_of_run.examine(of(runs, versus=("hybrid", "qann")).cut(60), silent))


def test_noise_of_level_zero_is_clean(runs: dict[str, Path], noise: dict[str, Any]) -> None:
    seen = of(runs)
    images, labels = next(seen.batches(noise["n"]))
    for each in seen.networks:
        with torch.no_grad():
            clean = float((each.answer(images).argmax(1) == labels).double().mean())
        for kind in noise["kinds"].values():
            if kind["networks"][each.name] is not None:
                assert kind["levels"][0] == 0
                assert kind["networks"][each.name]["accuracy"][0] == clean
        assert noise["networks"][each.name]["clean"] == clean


def test_noise_on_images_is_the_same_for_all(noise: dict[str, Any]) -> None:
    """The same network twice: equal in every image, so nothing lies between the two."""
    twin = next(name for name in noise["networks"] if name.startswith("hybrid ("))
    for name, kind in noise["kinds"].items():
        assert kind["where"] in ("image", "network"), name
        found = kind["networks"]
        assert found["hybrid"] == found[twin], name
    beside = noise["versus"][twin]["all"]
    for part in ("clean", "noisy", "drop", "kept"):
        assert beside[part]["mean"] == 0 and beside[part]["low"] <= 0 <= beside[part]["high"]


def test_noise_that_means_nothing_is_null(noise: dict[str, Any]) -> None:
    for kind in ("spike-drop", "spike-insertion", "threshold-jitter"):
        found = noise["kinds"][kind]["networks"]
        assert found["teacher"] is None and found["qann"] is None and found["hybrid"] is not None
        assert kind not in noise["versus"]["teacher"]
    for kind in ("weight-noise", "weight-bits", "gaussian", "haze"):
        assert all(noise["kinds"][kind]["networks"].values())
        assert noise["versus"]["teacher"][kind]["images"] == noise["n"]
    lines = [line for line in noise_of_run.say(noise) if "one trained network each" in line]
    assert len(lines) == len(noise["versus"]) and all("Another seed" in line for line in lines)
    json.dumps(noise, allow_nan=False)


def test_noise_spends_images_wisely(runs: dict[str, Path]) -> None:
    seen = of(runs)
    plan = planned(seen)
    assert (len(plan.subject.dataset.test), plan.again) == (100, 50)
    many = seen.dataset.test.at(torch.arange(1000) % 100)
    larger = dataclasses.replace(seen, dataset=dataclasses.replace(seen.dataset, test=many))
    plan = planned(larger)
    assert (len(plan.subject.dataset.test), plan.again) == (500, 100)
    assert len(plan.drawn(0).dataset.test) == 500 and len(plan.drawn(2).dataset.test) == 100


def test_way_of_running_fits_the_network(runs: dict[str, Path]) -> None:
    """The compiled scan where there is much to do, and always the network's own answers."""
    seen = of(runs, versus=("qann",))
    images, _ = next(seen.batches(10))
    teacher, rival, student = seen.networks
    assert way(teacher, images, 3, 10**9) is ann
    assert way(rival, images, 3, 10**9) is quantised
    few_steps, many = (way(student, images, 3, count) for count in (10, 10**9))
    assert (few_steps.keywords["fuse"], many.keywords["fuse"]) == (False, True)
    with torch.no_grad():
        found = few_steps(student.net, student.encode(images, 3)).mean_logits
        torch.testing.assert_close(found, student.answer(images))


def test_health_of_a_run(runs: dict[str, Path]) -> None:
    seen = of(runs)
    found = finite(health_of_run.examine(seen, silent))
    images, _ = next(seen.batches(100))
    assert found["counts"] == {"layers": 100, "gradients": 64}
    paths = list(found["layers"])
    teacher = capture(load(runs["teacher"]).net)
    with torch.no_grad():
        ours = bptt(seen.student.net, repeat(images, 3), paths).taps
        theirs = ann(teacher, repeat(images, 3), paths).taps
    for path, layer in found["layers"].items():
        expected = linear_cka(ours[path].mean, theirs[path].mean)
        assert layer["similarity"]["cka"] == pytest.approx(expected)
        assert 0.3 < layer["similarity"]["cka"] <= 1
    weighted = {n.rpartition(".")[0] for n, _ in seen.student.net.named_parameters()}
    assert set(found["gradients"]) == weighted
    assert health_of_run.say(found)
    with pytest.raises(UserError, match="no spikes"):
        health_of_run.examine(of(runs, "qann"), silent)


def test_places_of_other_architectures_are_stages() -> None:
    other = capture(network("stages"))
    example = small_images("stages", 2)
    same = health_of_run.places(small_student("stages"), other, example)
    assert len(same) == len(set(same.values())) >= 4
    mixed = health_of_run.places(small_student("stages"), capture(network("residual")), example)
    assert len(mixed) == 1  # only the resolution of the input is in both


def of_cifar(seen: Subject, root: Path, **data: Any) -> Subject:
    """The same images as if they were the test part of CIFAR-10 in a folder."""
    recipe = dataclasses.replace(seen.loaded.recipe, data={"kind": "cifar10", "root": root, **data})
    loaded = dataclasses.replace(seen.loaded, recipe=recipe)
    cifar = dataclasses.replace(seen.dataset, name="cifar10")
    return dataclasses.replace(seen, loaded=loaded, dataset=cifar)


@pytest.fixture
def beside(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Subject, np.ndarray, np.ndarray]:
    """A subject of three images; files of two severities of four images; and what is in them."""
    monkeypatch.setattr(natural_files, "OFFICIAL", 4)
    monkeypatch.setattr(natural_files, "SEVERITIES", 2)
    seen = of_cifar(of(runs).cut(3), tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    labels = np.array([*seen.dataset.test.labels.tolist(), 9] * 2, dtype=np.uint8)
    (tmp_path / "CIFAR-10-C").mkdir()
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", labels)
    np.save(tmp_path / "CIFAR-10-C" / "jpeg_compression.npy", pixels)
    np.savez(tmp_path / "cifar10.npz", x_test_jpeg=pixels[:4], y_test_jpeg=labels[:4])
    return seen, pixels, labels


def test_files_beside_cifar10(
    beside: tuple[Subject, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Image i of the test part is image i of every severity; other labels are refused."""
    seen, pixels, labels = beside
    found = natural_files.natural(seen, 3)
    assert list(found.kinds) == ["jpeg", "c-jpeg-compression"] and not found.notes
    unit, (first, second) = found.kinds["c-jpeg-compression"]
    assert unit == "severity"
    for i, image in enumerate([*first, *second]):
        expected = torch.from_numpy(pixels[i if i < 3 else i + 1]).permute(2, 0, 1)
        assert torch.equal(image, expected)
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", (labels + 1) % 10)
    found = natural_files.natural(seen, 3)
    assert list(found.kinds) == ["jpeg"]
    assert len(found.notes) == 1 and "its labels are not those" in found.notes[0]
    assert not natural_files.natural(dataclasses.replace(seen, split="validation"), 3).kinds


def test_other_test_parts_of_cifar10_have_no_files(
    beside: tuple[Subject, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Batch 5 and JPEG images are not what was corrupted, though labels might agree."""
    for data, words in (({"protocol": "batch5"}, "batch5"), ({"test": "jpeg"}, "JPEG already")):
        found = natural_files.natural(of_cifar(beside[0], tmp_path, **data), 3)
        assert not found.kinds and len(found.notes) == 2
        assert all(words in note for note in found.notes)
    mnist = dataclasses.replace(beside[0].dataset, name="mnist")
    found = natural_files.natural(dataclasses.replace(beside[0], dataset=mnist), 3)
    assert not found.kinds and not found.notes


def test_files_that_are_not_as_published_are_named(
    beside: tuple[Subject, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    seen, pixels, _ = beside
    folder = tmp_path / "CIFAR-10-C"
    np.save(folder / "fog.npy", pixels[:6])
    np.save(folder / "frost.npy", pixels.astype(np.float32))
    (folder / "snow.npy").write_bytes(b"no array")
    found = natural_files.natural(seen, 3)
    assert list(found.kinds) == ["jpeg", "c-jpeg-compression"]
    for name, words in (("fog", "(6, 8, 8, 3)"), ("frost", "float32"), ("snow", "cannot be read")):
        assert any(f"{name}.npy" in note and words in note for note in found.notes), name
    (folder / "labels.npy").unlink()
    found = natural_files.natural(seen, 3)
    assert list(found.kinds) == ["jpeg"] and "no labels.npy" in found.notes[0]


def test_files_are_as_large_as_the_images(
    beside: tuple[Subject, np.ndarray, np.ndarray],
) -> None:
    """CIFAR-10 averaged to fewer pixels: its corrupted images are averaged likewise."""
    seen, pixels, _ = beside
    small = seen.dataset.test.images[:, :, ::2, ::2]
    half = dataclasses.replace(seen.dataset, test=Split(small, seen.dataset.test.labels))
    half = dataclasses.replace(half, train=half.test)
    found = natural_files.natural(dataclasses.replace(seen, dataset=half), 3)
    image = found.kinds["jpeg"][1][0][1]
    expected = pixels[1].reshape(4, 2, 4, 2, 3).mean((1, 3)).round()
    assert image.shape == (3, 4, 4)
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_jpeg_images_of_cifar10_are_those_of_the_test_part(data_root: Path) -> None:
    """Image by image: each is nearer to its own original than to its neighbour's."""
    root = data_root
    if not (root / "cifar10.npz").exists():
        pytest.skip(f"no cifar10.npz in {root}")
    dataset = cifar10(root=root)
    loaded = type("Run", (), {"recipe": Recipe("teach", {"kind": "cifar10", "root": str(root)})})
    seen = type("Seen", (), {"dataset": dataset, "split": "test", "loaded": loaded})
    count = len(dataset.test)
    found = natural_files.natural(seen, count).kinds["jpeg"][1][0].float()
    assert len(found) == count
    clean = dataset.test.images.float()
    own = (found - clean).square().flatten(1).mean(1)
    other = (found - clean.roll(1, 0)).square().flatten(1).mean(1)
    assert bool((own < other).all())
    assert 29 < float((10 * (255**2 / own).log10()).median()) < 32


# ---- networks again with other seeds ------------------------------------------------------------


def again(runs: dict[str, Path], name: str, seed: int, folder: Path) -> Path:
    """A run's folder as if it had been trained with another seed."""
    other = shutil.copytree(runs[name], folder / f"{name}-seed{seed}")
    recipe = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps({**recipe, "seed": seed}))
    results = json.loads((other / "results.json").read_text())
    results.pop("sums")
    (other / "results.json").write_text(json.dumps(results))
    return other


def test_seeds_are_paired_and_told(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds of two methods: intervals over seeds, and none of a single pair of them."""
    monkeypatch.setattr(exposure, "kinds_of", lambda unit: {k: KINDS[k] for k in ("haze", "blur")})
    monkeypatch.setattr(exposure, "DISTURBANCES", {})
    more = [again(runs, name, 7, tmp_path) for name in ("hybrid", "none")]
    loaded = load(runs["hybrid"])
    versus = [str(each) for each in (runs["none"], *more, runs["qann"])]
    seen = subject(loaded, loaded.dataset(), versus)
    (pair,) = matched(seen)
    assert (pair.method, pair.minus, list(pair.networks)) == ("hybrid", "none", [2, 7])
    assert pair.networks[2] == ("hybrid", "none")
    found = finite(noise_of_run.examine(seen.cut(40), silent))
    (row,) = found["over_seeds"]
    single = found["versus"]["none"]["all"]["kept"]["mean"]
    assert row["kept"]["mean"] == pytest.approx(single)
    noisy = found["versus"]["none"]["all"]["noisy"]["mean"]  # the same weights twice
    assert row["noisy"]["mean"] == pytest.approx(noisy)
    lines = noise_of_run.say(found)
    assert sum("over 2 seeds" in line for line in lines) == 1
    assert sum("one trained network each" in line for line in lines) == 2  # teacher and qann
    alike = finite(saliency_of_run.examine(seen.cut(60), silent))
    (row,) = alike["over_seeds"]
    means = {each["network"]: each["spearman"]["mean"] for each in alike["similarity"]}
    assert row["spearman"]["mean"] == pytest.approx(means["hybrid"] - means["none"])
    assert any("over 2 seeds" in line for line in saliency_of_run.say(alike))
    assert matched(of(runs, versus=("none", "qann"))) == []


# ---- several measures ---------------------------------------------------------------------------


def test_failing_measure_loses_nothing(runs: dict[str, Path]) -> None:
    names = ["test_examine:crashing", "test_examine:mine", "test_examine:broken", "health"]
    found, failed = work(of(runs), names, 30, telling)
    assert list(found) == ["test_examine:mine", "health"]
    assert isinstance(failed["test_examine:crashing"], ZeroDivisionError)
    assert isinstance(failed["test_examine:broken"], UserError)
    for name, each in found.items():
        stored = json.loads(file_of(runs["hybrid"], name).read_text())
        assert stored == {"schema": 1, "measure": name, **each}
        assert stored["settings"]["images"] == 30 and stored["settings"]["split"] == "test"
    assert found["test_examine:mine"]["count"] == 30
    assert found["test_examine:mine"]["nothing"] is None


def test_measure_that_is_nowhere_stops_before_the_others(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="cannot be imported"):
        work(of(runs), ["test_examine:mine", "nowhere.at:all"], None, telling)


def only_object(text: str) -> dict[str, Any]:
    (line,) = text.strip().splitlines()
    return json.loads(line)


def test_command_takes_several(runs: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    run, words = str(runs["hybrid"]), ["test_examine:mine", "health", "steps"]
    versus = ["--versus", str(runs["none"]), str(runs["teacher"]), "--images", "40", "--json"]
    assert main(["measure", run, *words, "--steps", "1", "3", *versus]) == 0
    out, err = capfd.readouterr()
    content = only_object(out)
    assert list(content["measures"]) == ["steps", "health", "test_examine:mine"]
    assert content["rows"] == content["measures"]["steps"]["rows"]
    assert [row["steps"] for row in content["rows"] if row["method"] == "hybrid"] == [1, 3]
    settings = content["measures"]["steps"]["settings"]
    assert settings["images"] == 40 and settings["over"] == [1, 3]
    others = {"none": str(runs["none"]), "teacher (teacher)": str(runs["teacher"])}
    assert settings["versus"] == others
    assert "steps: done" in err and "failed" not in content


def test_command_without_names_takes_all_that_suit(
    runs: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", str(runs["teacher"]), "--images", "20", "--json", "--quiet"]) == 0
    out, err = capfd.readouterr()
    content = only_object(out)
    assert set(content["measures"]) | set(content.get("failed", {})) == set(MEASURES) - {
        *NEED_SPIKES,
        *NEED_ANOTHER,
    }
    assert {"steps", "noise"} <= set(content["measures"]) and err == ""
    assert content["rows"][0]["method"] == "teacher"


def test_command_says_what_was_found(
    runs: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", str(runs["none"]), "health", "steps", "--quiet"]) == 0
    out, _ = capfd.readouterr()
    assert "calibration error" in out and "layers of neurons" in out
    assert str(runs["none"] / "measures" / "health.json") in out


def test_progress_on_a_terminal() -> None:
    """The bar shows words and share while a measure runs, and goes with it."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with measure_command._board(console) as telling_, telling_("noise") as tell:
        tell(1, 4, "haze")
        time.sleep(0.6)
    assert "noise: haze" in shown.getvalue() and "noise: done" in shown.getvalue()


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["test_examine:broken", "test_examine:mine"], "never suits", 2),
        (["test_examine:crashing", "test_examine:mine"], "a defect", 1),
        (["test_examine:nothing"], "nothing", 2),
        (["health", "--images", "0"], "1 or more", 2),
        (["health", "--versus", "nowhere"], "no run", 2),
    ],
)
def test_command_complains(
    words: list[str],
    said: str,
    status: int,
    runs: dict[str, Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = file_of(runs["none"], "test_examine:mine")
    file.unlink(missing_ok=True)
    assert main(["measure", str(runs["none"]), *words, "--quiet"]) == status
    assert said in capfd.readouterr().err
    assert file.exists() == ("test_examine:mine" in words)


def test_measured_network_is_left_as_it_was(runs: dict[str, Path]) -> None:
    """A measured network is left as it was."""
    seen = of(runs)
    net: nn.Module = seen.student.net
    before: dict[str, Tensor] = {k: v.clone() for k, v in net.state_dict().items()}
    health_of_run.examine(seen, silent)
    noise_of_run.examine(seen.cut(5), silent)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_an_early_exit_that_costs_too_much_is_none() -> None:
    whole = {"threshold": 1.01, "steps": 4.0, "accuracy": 0.9}
    early = {"threshold": 0.9, "steps": 2.0, "accuracy": 0.8}
    by_steps = [{"steps": 4, "accuracy": 0.9, "calibration_error": 0.01}]
    for points, words in (
        ([early, whole], "no early exit"),
        ([{**early, "accuracy": 0.899}, whole], "leaving once 0.9 sure takes 2.00 steps"),
    ):
        network = {"by_steps": by_steps, "early_exit": points}
        (line,) = steps_of_run.say({"networks": {"none": network}})
        assert words in line and "1.01" not in line
