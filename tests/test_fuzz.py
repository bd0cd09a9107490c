"""Damaged and hostile input: a sentence or a valid result, never another error, no code that runs.

Set SPIKELET_FUZZ to a number of examples to look further than the suite does, with other ones each
time: `SPIKELET_FUZZ=2000 python -m pytest tests/test_fuzz.py`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from rich.console import Console
from torch import nn

from spikelet.checkpoint import load_metadata, load_state, load_weights, save_state, save_weights
from spikelet.compare.grid import Grid, stored_grid
from spikelet.data.folder import decode, imagefolder
from spikelet.errors import UserError
from spikelet.models.weights import load_weights as load_into
from spikelet.models.weights import read_weights
from spikelet.recipe import (
    DATA,
    ENCODERS,
    EXECUTES,
    METHODS,
    NEURONS,
    TERMS,
    Recipe,
    Training,
    build,
    default_recipe,
)
from spikelet.train import load
from spikelet.train.job import distill, teach
from spikelet.train.stored import stored_rows
from test_compare import few

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # leaves nothing here
EXAMPLES = int(os.environ.get("SPIKELET_FUZZ", "0"))


def damaged(count: int) -> Any:
    """As many examples as the suite has time for, the same ones each time; or those asked for."""
    return settings(
        max_examples=EXAMPLES or count,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---- strategies -------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "IF", "digits", "os:system", "builtins:eval", "torch:load", "..:x", "$"]),
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "$", "name", "items", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON document."""
    found, inner = [path], value if isinstance(value, dict | list) else []
    for key in inner if isinstance(inner, dict) else range(len(inner)):
        found += places(value[key], (*path, key))
    return found


@st.composite
def mutated(draw: Any, document: Any) -> Any:
    """A JSON document in which one or two places are gone, renamed or hold something else."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(changed)))
        if not path:
            return draw(anything)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        how = draw(st.sampled_from(["other", "gone", "renamed"]))
        if how == "other" or isinstance(holder, list):
            holder[path[-1]] = draw(anything)
        elif how == "gone":
            del holder[path[-1]]
        else:
            holder[draw(st.text(max_size=5))] = holder.pop(path[-1])
    return changed


@st.composite
def bent(draw: Any, content: bytes) -> bytes:
    """Bytes that were cut, or of which a few are others."""
    if draw(st.booleans()):
        return content[: draw(st.integers(0, len(content)))]
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        found[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(found)


# ---- recipes and grids ------------------------------------------------------------------------

RECIPES = [
    json.loads(default_recipe("distill", {"kind": "digits"}, name, teacher={"run": "t"}).to_json())
    for name in sorted(METHODS)
]
GRID = Grid({"kind": "digits"}, ("logits",), (2, 4), overrides={"calibrate": 4}).to_json()


@damaged(80)
@given(st.sampled_from(RECIPES).flatmap(mutated))
def test_a_recipe_of_wrong_types_is_named(fields: Any) -> None:
    try:
        recipe = Recipe.from_json(json.dumps(fields))
    except UserError:
        return
    assert Recipe.from_json(recipe.to_json()) == recipe
    parts = [("neuron", recipe.neuron, NEURONS), ("execute", recipe.execute, EXECUTES)]
    parts += [("encode", recipe.encode, ENCODERS)]
    parts += [(name, spec, TERMS) for name, spec in recipe.terms.items()]
    for name, spec, table in parts:
        try:
            build(name, spec, table)
        except UserError as error:
            assert error.argument and error.fix


@damaged(80)
@given(mutated(GRID))
def test_a_grid_of_wrong_types_is_named(fields: Any) -> None:
    try:
        grid = Grid.from_json(fields if isinstance(fields, dict) else {"grid": fields})
    except UserError:
        return
    assert Grid.from_json(grid.to_json()) == grid


HARD = ["[" * 100_000, '{"task":' * 5000, "9" * 5000, "\x00", '"\\ud800"']


@pytest.mark.parametrize("text", HARD, ids=["lists", "objects", "digits", "zero", "surrogate"])
def test_text_that_is_hard_to_read_is_no_recipe(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Recipe.from_json(text)
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(UserError, match=r"compare\.json"):
        stored_grid(tmp_path)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("os:system", {"command": "touch MARK"}),
        ("posix:system", {"command": "touch MARK"}),
        ("subprocess:run", {"args": ["touch", "MARK"]}),
        ("builtins:open", {"file": "MARK", "mode": "w"}),
        ("pathlib:Path.touch", {"self": "MARK"}),
        ("numpy:save", {"file": "MARK", "arr": 1}),
        ("spikelet.folder:append", {"path": "MARK", "text": "x"}),
        ("spikelet.train.run:write_json", {"path": "MARK", "content": 1}),
        ("spikelet.data.folder:os.system", {"command": "touch MARK"}),
        ("test_compare:os.system", {"command": "touch MARK"}),
        ("spikelet.cli:main", {"words": ["teach", "--data", "digits", "--out", "MARK"]}),
    ],
)
def test_a_recipe_does_not_call_what_could_do_harm(
    kind: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    filled = json.loads(json.dumps(fields).replace("MARK", str(mark)))
    for table in (DATA, TERMS, NEURONS, EXECUTES):
        with pytest.raises(UserError):
            build("data", {"kind": kind, **filled}, table)
    assert not mark.exists()


# ---- tensor files -----------------------------------------------------------------------------


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def bytes_of(save: Any) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def weights_of(kind: str, folder: Path) -> bytes:
    state = net().state_dict()
    if kind == "npz":
        return bytes_of(lambda file: np.savez(file, **{k: v.numpy() for k, v in state.items()}))
    if kind == "pt":
        return bytes_of(lambda file: torch.save(state, file))
    save_weights(folder / "whole.safetensors", state)
    return (folder / "whole.safetensors").read_bytes()


def sees(path: Path) -> None:
    """Reading a file gives the tensors of the network, finite, or a sentence."""
    model = net()
    try:
        load_into(model, path)
    except UserError:
        return
    for value in model.state_dict().values():
        assert value.device.type == "cpu" and bool(torch.isfinite(value.double()).all())


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pt"])
def test_bent_weights_are_read_or_named(kind: str, place: Path) -> None:
    whole = weights_of(kind, place)

    @damaged(60)
    @given(bent(whole))
    def check(content: bytes) -> None:
        path = place / f"bent.{kind}"
        path.write_bytes(content)
        sees(path)

    check()


HEADER = {
    "__metadata__": {"accuracy": "0.5"},
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
}


@damaged(100)
@given(mutated(HEADER), st.integers(-9, 9), st.integers(0, 20))
def test_a_header_of_safetensors_is_believed_only_if_it_fits(
    place: Path, header: Any, longer: int, size: int
) -> None:
    text = json.dumps(header).encode()
    path = place / "header.safetensors"
    length = max(len(text) + longer, 0)
    path.write_bytes(struct.pack("<Q", length) + text + bytes(size))
    for read in (load_weights, load_metadata, read_weights):
        try:
            found = read(path)
        except UserError:
            continue
        for value in found.values():
            assert isinstance(value, str) or value.numel() * value.element_size() <= size


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["w.npz", "w.pt", "w.bin", "object.npz", "member.npz"])
def test_a_pickle_is_never_run(name: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    harmful = pickle.dumps({"weight": Touch(mark)})
    if name == "object.npz":
        with path.open("wb") as file:
            np.savez(file, weight=np.array([Touch(mark)], dtype=object))
    elif name == "member.npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weight.npy", harmful)
    elif name == "w.pt":
        torch.save({"weight": Touch(mark)}, path)
    else:
        path.write_bytes(harmful)
    with pytest.raises(UserError, match=r"cannot be read as plain weights|no state dict"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {k: v.to(torch.complex64) for k, v in state.items()}, "type"),
        (lambda state: {k: v.to(torch.int32) for k, v in state.items()}, "type"),
        (lambda state: {k: torch.full_like(v, torch.nan) for k, v in state.items()}, "finite"),
        (lambda state: {k: v.to_sparse() for k, v in state.items()}, "type|read"),
        (lambda state: {k: v.to("meta") for k, v in state.items()}, "type|read"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(
    change: Any, says: str, tmp_path: Path
) -> None:
    floats = {k: v for k, v in net().state_dict().items() if v.is_floating_point()}
    torch.save(change(floats), tmp_path / "w.pt")
    with pytest.raises(UserError, match=says):
        load_into(net(), tmp_path / "w.pt")


# ---- checkpoints and run folders ----------------------------------------------------------------

STATE = {"epoch": 1, "rates": (0.1, None), "model": {0: torch.ones(2), "$": "x"}, "history": [{}]}


@damaged(60)
@given(st.data())
def test_a_mutated_checkpoint_is_never_taken(place: Path, data: Any) -> None:
    """Its sums do not fit any more; without sums, as the first version wrote it, it may be read."""
    whole, folder = place / "whole state", place / "state"
    if not whole.exists():
        save_state(whole, STATE)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = next(folder.glob("state-*.json"))
    document = json.loads(path.read_text())
    changed = data.draw(mutated(document))
    path.write_text(json.dumps(changed))
    if changed != document:
        with pytest.raises(UserError, match=r"damaged|no checkpoint"):
            load_state(folder)
    path.rename(folder / "state.json")
    try:
        assert isinstance(load_state(folder), dict)
    except UserError as error:
        assert str(folder) in str(error)


QUIET = Console(quiet=True)
SMALL = {"kind": "small-cnn", "width": 2}


@pytest.fixture(scope="module")
def student(place: Path) -> Path:
    """A finished run of a student, with its checkpoint."""
    data = {"kind": "test_compare:few"}
    training = Training(epochs=1, batch=50, learning_rate=0.01)
    there: dict[str, Any] = {"console": QUIET, "device": "cpu", "dataset": few()}
    teach(default_recipe("teach", data, model=SMALL, training=training), place / "t", **there)
    spec = {"run": str(place / "t")}
    mine = default_recipe("distill", data, "logits", teacher=spec, training=training, steps=1)
    mine = dataclasses.replace(
        mine, calibrate=8, estimate=0, execute={**mine.execute, "fuse": False}
    )
    distill(mine, place / "student", **there)
    return place / "student"


FILES = ("recipe.json", "model.json", "card.json", "results.json")


@damaged(60)
@given(st.data())
def test_a_run_with_a_mutated_file_is_read_or_named(student: Path, place: Path, data: Any) -> None:
    run = place / "mutated"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(student, run, ignore=shutil.ignore_patterns("checkpoint"))
    path = run / data.draw(st.sampled_from(FILES))
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(mutated(json.loads(path.read_text())))))
    else:
        path.write_bytes(data.draw(bent(path.read_bytes())))
    images = torch.arange(64.0).view(1, 1, 8, 8) / 32 - 1
    try:
        stored_rows(run, "mend it")
        found = load(run).predict(images)
    except UserError as error:
        assert error.fix
        return
    assert torch.equal(found, load(student).predict(images)), "read, and read wrongly"


@damaged(8)
@given(st.data())
def test_a_run_is_continued_from_a_bent_checkpoint_or_it_is_named(
    student: Path, place: Path, data: Any
) -> None:
    run = place / "resumed"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(student, run)
    (run / "results.json").unlink()
    for path in sorted((run / "checkpoint").iterdir()):
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(bent(path.read_bytes())))
    recipe = load(student).recipe
    there: dict[str, Any] = {"console": QUIET, "device": "cpu", "dataset": few()}
    try:
        distill(recipe, run, resume=True, **there)
    except UserError as error:
        assert "checkpoint" in str(error)
        return
    theirs = (student / "model.safetensors").read_bytes()
    assert (run / "model.safetensors").read_bytes() == theirs


# ---- images -----------------------------------------------------------------------------------


def picture(form: str, mode: str) -> bytes:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    return bytes_of(lambda file: Image.fromarray(pixels).convert(mode).save(file, form))


PICTURES = [
    (form, mode)
    for form, modes in {"png": "L RGB RGBA P 1 LA", "jpeg": "L RGB CMYK", "bmp": "L RGB P"}.items()
    for mode in modes.split()
] + [("webp", "RGB"), ("tiff", "L"), ("ppm", "RGB")]


@damaged(80)
@given(
    st.sampled_from(PICTURES).flatmap(lambda each: bent(picture(*each))), st.sampled_from([1, 3])
)
@pytest.mark.filterwarnings("ignore")
def test_a_bent_image_is_read_or_named(place: Path, content: bytes, channels: int) -> None:
    path = place / "bent.png"
    path.write_bytes(content)
    try:
        found = decode([path], 8, channels)
    except UserError as error:
        assert str(path) in str(error)
        return
    assert found.shape == (1, channels, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("form", "mode"), PICTURES)
def test_every_kind_of_image_is_read(form: str, mode: str, channels: int, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(picture(form, mode))
    found = decode([tmp_path / "image.png"], 8, channels)
    if mode not in ("1", "CMYK") and form not in ("jpeg", "webp"):
        assert int((found[0, 0].int() - torch.arange(64).view(8, 8)).abs().max()) <= 1


@pytest.mark.parametrize("suffix", ["png", "pgm"])
def test_sixteen_bits_are_scaled_not_cut(suffix: str, tmp_path: Path) -> None:
    """Pillow's own conversion makes every value above 255 white."""
    levels = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    path = tmp_path / f"image.{suffix}"
    if suffix == "png":
        Image.fromarray(levels).save(path)
    else:
        path.write_bytes(b"P5 8 8 65535\n" + levels.astype(">u2").tobytes())
    for channels in (1, 3):
        found = decode([path], 8, channels)[0]
        for channel in found:
            expected = torch.tensor(levels.astype(np.float64) / 65535 * 255).round()
            assert torch.equal(channel.double(), expected)


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / "image.tiff")
    with pytest.raises(UserError, match=r"image\.tiff.*range of its pixels is not known"):
        decode([tmp_path / "image.tiff"], 8, 1)


def test_a_class_that_has_nothing_left_to_train_on_is_named(tmp_path: Path) -> None:
    for name, count in (("many", 12), ("one", 1)):
        for number in range(count):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture("png", "L"))
    made = imagefolder(root=tmp_path, size=8, validation=2)
    assert int((made.train.labels == 1).sum()) == 1
    with pytest.raises(UserError, match="class one has no image left to train on"):
        imagefolder(root=tmp_path, size=8, validation=6)
