"""Weights and training state: exact round trips, crash safety, clear refusals."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spikelet import checkpoint, folder
from spikelet.checkpoint import (
    generator_states,
    load_metadata,
    load_state,
    load_weights,
    newest_state,
    restore,
    restore_generators,
    save_state,
    save_weights,
    set_aside,
)
from spikelet.errors import UserError


class Tied(nn.Module):
    """Two layers that share one weight, stored transposed in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.first.weight = nn.Parameter(torch.randn(3, 3).t())
        self.second.weight = self.first.weight


def same(left: object, right: object) -> bool:
    """Equality with types, through containers, tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and left.equal(right)
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and list(left) == list(right)
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def test_weights_survive_with_ties_strides_and_metadata(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "deep" / "model.safetensors"
    save_weights(path, model, {"steps": "4"})
    state = load_weights(path)
    assert same(state, dict(model.state_dict()))
    assert load_metadata(path) == {"steps": "4"}
    other = Tied()
    restore(other, state, "weights")
    assert other.second.weight is other.first.weight
    assert other.first.weight.equal(model.first.weight)


def test_weights_of_views_do_not_drag_their_storage_along(tmp_path: Path) -> None:
    base = torch.randn(1000, 10)
    save_weights(tmp_path / "w.safetensors", {"row": base[3], "same": base[3], "empty": base[:0]})
    assert (tmp_path / "w.safetensors").stat().st_size < 1000
    assert load_weights(tmp_path / "w.safetensors")["same"].equal(base[3])


def nested() -> dict[str, object]:
    """A state with everything an optimiser or a log may hold."""
    return {
        "optimiser": {
            "state": {0: {"step": torch.tensor(3.0), "buffer": torch.randn(2, 3)}, 1: {}},
            "param_groups": [{"betas": (0.9, 0.999), "lr": 0.1, "foreach": None, "params": [0, 1]}],
        },
        "clash": {1: torch.ones(1), "1": torch.zeros(1), "$": "tensor", "a/b": torch.arange(3)},
        "half": torch.randn(4).bfloat16(),
        "scalars": [1, 2.5, float("inf"), True, None, "text", [], ()],
    }


def test_nested_state_survives(tmp_path: Path) -> None:
    state = nested()
    save_state(tmp_path / "checkpoint", state)
    assert same(load_state(tmp_path / "checkpoint"), state)


def test_what_json_and_safetensors_cannot_hold_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, {"value": 1})
    with pytest.raises(TypeError, match="set cannot be stored"):
        save_state(tmp_path, {"value": {1, 2}})
    assert load_state(tmp_path) == {"value": 1}


def test_generators_continue_where_they_were(tmp_path: Path) -> None:
    own = torch.Generator().manual_seed(3)
    torch.rand(5, generator=own)
    save_state(tmp_path, {"generators": generator_states({"own": own}), "raw": own})
    expected = torch.rand(4), torch.rand(4, generator=own)
    fresh = torch.Generator()
    stored = load_state(tmp_path)
    restore_generators(stored["generators"], {"own": fresh})
    assert torch.rand(4).equal(expected[0])
    assert torch.rand(4, generator=fresh).equal(expected[1])
    assert stored["raw"].equal(stored["generators"]["own"])


@pytest.mark.parametrize("file", ["tensors", "state"])
@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_crash_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, moment: str
) -> None:
    save_state(tmp_path, {"value": torch.zeros(3)})
    save_state(tmp_path, {"value": torch.ones(3)})
    real_flush, real_replace = folder._flush, Path.replace

    def flush(path: Path) -> None:
        if moment == "writing" and file in path.name and path.suffix == ".new":
            raise OSError("no space left")
        real_flush(path)

    def replace(path: Path, target: Path) -> Path:
        if moment == "renaming" and target.name.startswith(file):
            raise OSError("power cut")
        return real_replace(path, target)

    monkeypatch.setattr(folder, "_flush", flush)
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match=r"no space|power cut"):
        save_state(tmp_path, {"value": torch.full((3,), 2.0)})
    monkeypatch.undo()
    assert load_state(tmp_path)["value"].equal(torch.ones(3))
    save_state(tmp_path, {"value": torch.full((3,), 3.0)})
    assert load_state(tmp_path)["value"].equal(torch.full((3,), 3.0))
    assert len(list(tmp_path.iterdir())) == 2 * checkpoint.KEPT


def value(number: int) -> dict[str, Any]:
    """A state that says which one it is, in a tensor and in the document."""
    return {"number": number, "value": torch.full((50,), float(number))}


def number_of(state: dict[str, Any]) -> int:
    assert bool((state["value"] == state["number"]).all())
    return int(state["number"])


def killed_at(operation: int, share: float, save: Callable[[], None]) -> bool:
    """Whether a process of its own was killed within `save`, at the n-th touch of the disk.

    What is being written then is cut at a share of its length.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    left = [operation]

    def dying(real: Callable[..., Any], written: Callable[..., Any] | None) -> Callable[..., Any]:
        def call(*args: Any, **fields: Any) -> Any:
            left[0] -= 1
            if left[0]:
                return real(*args, **fields)
            if written is not None:
                real(*args, **fields)
                path = written(*args)
                os.truncate(path, int(share * path.stat().st_size))
            os._exit(1)

        return call

    try:
        checkpoint.save_file = dying(checkpoint.save_file, lambda tensors, path, metadata: path)
        Path.write_text = dying(Path.write_text, lambda path, text: path)  # type: ignore[method-assign]
        Path.replace = dying(Path.replace, None)  # type: ignore[method-assign]
        Path.unlink = dying(Path.unlink, None)  # type: ignore[method-assign]
        Path.mkdir = dying(Path.mkdir, None)  # type: ignore[method-assign]
        folder._flush = dying(folder._flush, None)
        save()
    except BaseException:
        os._exit(2)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked on this system")
def test_killed_at_any_touch_of_the_disk_the_newest_whole_state_is_found(tmp_path: Path) -> None:
    """Each save is begun until it is through, and killed one operation later each time."""
    draw, saves, killed = random.Random(0), 4, 0
    for number in range(saves):
        operation = 1
        while killed_at(operation, draw.random(), lambda: save_state(tmp_path, value(number))):  # noqa: B023
            killed, operation = killed + 1, operation + 1
            try:
                found = number_of(load_state(tmp_path))
            except UserError as error:
                assert number == 0 and "none is stored" in error.message
            else:
                assert found in (number - 1, number)
        assert number_of(load_state(tmp_path)) == number
    assert killed > 8 * saves
    assert len(list(tmp_path.iterdir())) == 2 * checkpoint.KEPT, "a killed process left something"


def documents(run: Path) -> list[Path]:
    return sorted(run.glob("state-*.json"))


@pytest.mark.parametrize("kind", ["state", "tensors"])
def test_a_flipped_bit_or_a_cut_is_noticed_and_the_state_before_is_taken(
    tmp_path: Path, kind: str
) -> None:
    for number in range(3):
        save_state(tmp_path, value(number))
    newest = max(tmp_path.glob(f"{kind}-*"))
    whole, draw = newest.read_bytes(), random.Random(1)
    for _ in range(60):
        content = bytearray(whole)
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        newest.write_bytes(content if draw.random() < 0.7 else whole[: draw.randrange(len(whole))])
        state, damaged = newest_state(tmp_path)
        assert number_of(state) == 1
        assert [each.path for each in damaged] == documents(tmp_path)[-1:]
    newest.write_bytes(whole)
    assert number_of(load_state(tmp_path)) == 2


def test_a_damaged_state_takes_no_room_among_those_kept(tmp_path: Path) -> None:
    for number in range(2):
        save_state(tmp_path, value(number))
    documents(tmp_path)[-1].write_text("{")
    state, damaged = newest_state(tmp_path)
    assert number_of(state) == 0
    set_aside(damaged[0])
    save_state(tmp_path, value(2))
    documents(tmp_path)[-1].write_text("{")
    assert number_of(load_state(tmp_path)) == 0, "the only whole one was deleted"


def test_a_state_of_the_first_version_is_read_and_replaced_in_time(tmp_path: Path) -> None:
    """It had no sums, one document, and one of two tensor files."""
    tensors = {"/value": torch.full((50,), 7.0)}
    save_weights(tmp_path / "tensors-1.safetensors", tensors)
    state = {"number": 7, "value": {"$": "tensor", "name": "/value"}}
    document = {"format": checkpoint.FORMAT, "tensors": "tensors-1.safetensors", "state": state}
    (tmp_path / "state.json").write_text(json.dumps(document))
    assert number_of(load_state(tmp_path)) == 7
    save_state(tmp_path, value(8))
    assert number_of(load_state(tmp_path)) == 8
    documents(tmp_path)[0].write_text("{")
    assert number_of(load_state(tmp_path)) == 7
    set_aside(newest_state(tmp_path)[1][0])
    for number in (9, 10):
        save_state(tmp_path, value(number))
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & {"state.json", "tensors-1.safetensors"}


def test_a_state_of_a_later_version_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    for number in range(2):
        save_state(tmp_path, value(number))
    newest = documents(tmp_path)[-1]
    later = json.loads(newest.read_text()) | {"version": 99}
    newest.write_text(json.dumps(later | {"check": checkpoint._check(later)}))
    with pytest.raises(UserError, match=r"of version 99.*with the spikelet that wrote it"):
        load_state(tmp_path)


def test_a_tensor_file_elsewhere_is_not_read(tmp_path: Path) -> None:
    save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)})
    run = tmp_path / "run"
    run.mkdir()
    state = {"x": {"$": "tensor", "name": "x"}}
    document = {"format": checkpoint.FORMAT, "tensors": "../other.safetensors", "state": state}
    (run / "state.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="no such file"):
        load_state(run)


def test_a_full_disk_leaves_the_states_before(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    save_state(tmp_path, value(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="tensors-000002") as raised:
            save_state(tmp_path, {"value": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = folder.unwritable(raised.value, tmp_path, "spikelet teach --resume here")
    assert told is not None and "File too large" in told.message
    assert told.fix == "free some space, then continue with `spikelet teach --resume here`"
    assert number_of(load_state(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_missing_corrupt_and_foreign_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    with pytest.raises(UserError, match=r"weights = .*bad\.safetensors.*no such file"):
        load_weights(bad)
    bad.write_bytes(b"PK\x03\x04 a zip archive")
    for load in (load_weights, load_metadata):
        with pytest.raises(UserError, match="damaged or foreign"):
            load(bad)
    with pytest.raises(UserError, match="none is stored there"):
        load_state(tmp_path)
    save_state(tmp_path / "run", {"value": torch.randn(100)})
    tensors = next((tmp_path / "run").glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"checkpoint = .*damaged"):
        load_state(tmp_path / "run")
    tensors.unlink()
    with pytest.raises(UserError, match=r"checkpoint = .*no such file") as raised:
        load_state(tmp_path / "run")
    assert f"delete the folder {tmp_path / 'run'}" in raised.value.fix


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "damaged"),
        ("[]", "no checkpoint of spikelet"),
        (json.dumps({"format": "other"}), "no checkpoint of spikelet"),
        (json.dumps({"format": checkpoint.FORMAT}), "damaged"),
        (json.dumps({"format": checkpoint.FORMAT, "tensors": "t", "state": [1]}), "damaged"),
    ],
)
def test_foreign_state_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "state.json").write_text(content)
    save_weights(tmp_path / "t", {"x": torch.zeros(1)})
    with pytest.raises(UserError, match=says) as raised:
        load_state(tmp_path)
    assert str(tmp_path / "state.json") in raised.value.argument
    assert f"delete the folder {tmp_path}" in raised.value.fix


def test_weights_of_another_model_are_refused_by_name() -> None:
    state = nn.Linear(3, 2).state_dict()
    with pytest.raises(UserError, match=r"`teacher`.*bias is missing"):
        restore(nn.Linear(3, 2), {"weight": state["weight"]}, "teacher")
    with pytest.raises(UserError, match="bias is not in the model"):
        restore(nn.Linear(3, 2, bias=False), state, "teacher")
    with pytest.raises(UserError, match=r"weight is \(2, 3\), not \(2, 4\)"):
        restore(nn.Linear(4, 2), state, "teacher")


def test_weights_can_be_read_by_those_who_may_read_the_rest(tmp_path: Path) -> None:
    """The library that writes tensors leaves files that only their owner may read."""
    plain = tmp_path / "plain.txt"
    plain.write_text("as the umask has it")
    save_weights(tmp_path / "weights.safetensors", {"a": torch.zeros(2)})
    assert (tmp_path / "weights.safetensors").stat().st_mode == plain.stat().st_mode
