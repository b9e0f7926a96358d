"""Pyramid arrays: the documented format reads back, and everything outside it is refused in one line."""

import numpy as np
import pytest
import torch

from forwardsr.data import arrays as module
from forwardsr.data.arrays import is_array_folder, open_arrays
from forwardsr.data.source import FiniteSource
from forwardsr.errors import UserError


def _levels(n=20, d=12, counts=(1, 4, 16), dtype=np.float32):
    rng = np.random.default_rng(0)
    return {f"x{l}": rng.standard_normal((n, k, d)).astype(dtype) for l, k in enumerate(counts, start=1)}


def _save(root, arrays, packed):
    if packed:
        np.savez(root / "set.npz", **arrays)
        return root / "set.npz"
    folder = root / "set"
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.fixture(params=[True, False], ids=["npz", "folder"])
def save(request, tmp_path):
    return lambda arrays: _save(tmp_path, arrays, request.param)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_read_back(save, dtype):
    levels = _levels(dtype=dtype)
    source = open_arrays(save(levels | {"labels": np.zeros(3)}))
    assert isinstance(source, FiniteSource)
    assert len(source) == 20
    assert source.shapes == ((1, 12), (4, 12), (16, 12))
    index = torch.tensor([3, 0, 19, 3])
    pyramid = source.take(index)
    for x, level in zip(pyramid, levels.values(), strict=True):
        assert np.array_equal(x.numpy(), level[index.numpy()])
        assert x.numpy().dtype == dtype
    assert [x.shape[1] for x in source.take(index, levels=2)] == [1, 4]
    one, two = (source.draw(50, torch.Generator().manual_seed(0), levels=1)[0] for _ in range(2))
    assert torch.equal(one, two)


def test_reading_changes_no_file(save):
    path = save(_levels())
    open_arrays(path).take(torch.arange(20))[0].zero_()
    assert np.array_equal(open_arrays(path).take(torch.arange(20))[0].numpy(), _levels()["x1"])


def test_mixed_precision_comes_in_the_higher_one(save):
    levels = _levels()
    levels["x2"] = levels["x2"].astype(np.float64)
    assert {x.dtype for x in open_arrays(save(levels)).take(torch.arange(3))} == {torch.float64}


def test_a_folder_stays_on_disk(tmp_path):
    folder = _save(tmp_path, _levels(), packed=False)
    assert is_array_folder(folder)
    assert not is_array_folder(tmp_path)
    assert all(isinstance(x, np.memmap) for x in open_arrays(folder).arrays)


def test_parents_default_to_the_quad_tree(save):
    first, second, third = open_arrays(save(_levels())).parents
    assert first is None
    assert second.tolist() == [[0]] * 4
    assert third[:, 0].reshape(4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_parents_may_be_given(save, dtype):
    parents = np.array([[0, 2], [1, 1], [2, 0]], dtype)
    source = open_arrays(save(_levels(counts=(3, 3)) | {"parents2": parents}))
    assert source.parents[1].dtype == torch.int64
    assert source.parents[1].tolist() == parents.tolist()


def _with(name, change, counts=(1, 4, 16)):
    arrays = _levels(counts=counts)
    arrays[name] = change(arrays.get(name))
    return arrays


def _put(value):
    def change(x):
        x = x.copy()
        x[17, 2, 5] = value
        return x

    return change


REFUSED = {
    "NaN": (_with("x3", _put(np.nan)), "x3 holds NaN or infinity, first in sample 17"),
    "infinity": (_with("x2", _put(-np.inf)), "x2 holds NaN or infinity, first in sample 17"),
    "rank 2": (_with("x1", lambda x: x[:, 0]), r"x1 has shape \(20, 12\), not"),
    "rank 4": (_with("x2", lambda x: x[None]), "x2 has shape"),
    "integers": (_with("x1", lambda x: x.astype(np.int64)), "x1 is int64: save it as float32 or float64"),
    "half": (_with("x1", lambda x: x.astype(np.float16)), "x1 is float16"),
    "no samples": ({"x1": np.zeros((0, 1, 12), np.float32)}, "empty"),
    "other n": (_with("x3", lambda x: x[:19]), "x3 has 19 samples and x1 20"),
    "other d": (_with("x2", lambda x: x[..., :9]), "patches of x2 hold 9 numbers and those of x1 12"),
    "gap": ({k: v for k, v in _levels().items() if k != "x2"}, "x2 is missing"),
    "no level": ({"y": np.zeros(3)}, "no x1"),
    "no quad-tree": (_levels(counts=(1, 3)), r"add parents2 of shape \(3, \|P\|\)"),
    "oblong quad-tree": (_levels(counts=(2, 8)), "add parents2"),
    "parent too large": (_with("parents3", lambda _: np.full((16, 1), 4)), "names patch 4 of level 2, .* 0 to 3"),
    "parent negative": (_with("parents3", lambda _: np.full((16, 2), -1)), "names patch -1 of level 2"),
    "parents of other length": (_with("parents2", lambda _: np.zeros((3, 1), np.int64)), "parents2"),
    "parents flat": (_with("parents2", lambda _: np.zeros(4, np.int64)), "parents2"),
    "parents float": (_with("parents2", lambda _: np.zeros((4, 1))), "parents2 is float64"),
    "parents none": (_with("parents2", lambda _: np.zeros((4, 0), np.int64)), "parents2"),
    "pickled": ({"x1": np.array([{}], object)}, "not a readable"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_outside_the_format_is_refused(save, case, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1500)  # the check goes through several chunks
    arrays, match = REFUSED[case]
    path = save(arrays)
    with pytest.raises(UserError, match=match) as caught:
        open_arrays(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "npy"])
def test_damaged_files_are_refused(save, damage, tmp_path):
    path = save(_levels())
    file = path / "x2.npy" if path.is_dir() else path
    whole = file.read_bytes()
    if damage == "npy" and path.is_dir():
        pytest.skip("an .npy is what it should be")
    np.save(tmp_path / "x1.npy", np.zeros(3))
    file.write_bytes(
        {"cut": whole[: len(whole) // 2], "text": b"text", "empty": b"", "npy": (tmp_path / "x1.npy").read_bytes()}[
            damage
        ]
    )
    with pytest.raises(UserError, match="not a readable") as caught:
        open_arrays(path)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
