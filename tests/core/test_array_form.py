"""What bytes are as an array: which dtypes there are, how many bytes they have, and that nothing else comes of any text."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaas_core.array_form import dtype_from_text, form_problems, is_of_ml_dtypes, item_size

PROPERTY = settings(max_examples=500, deadline=None)

OF_ML_DTYPES = sorted(
    name
    for name in dir(ml_dtypes)
    if isinstance(kind := getattr(ml_dtypes, name), type) and issubclass(kind, np.generic) and np.dtype(kind).kind != "O"
)


def test_the_sizes_of_all_types_of_ml_dtypes_are_known_by_name() -> None:
    assert {"bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4"} <= set(OF_ML_DTYPES)
    for name in OF_ML_DTYPES:
        assert is_of_ml_dtypes(name)
        assert item_size(name) == dtype_from_text(name).itemsize == np.dtype(getattr(ml_dtypes, name)).itemsize


def test_sizes_need_no_ml_dtypes() -> None:
    code = f"""
import sys
sys.modules["ml_dtypes"] = None
from kaas_core.array_form import item_size
print([item_size(name) for name in {OF_ML_DTYPES}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert json.loads(done.stdout) == [np.dtype(getattr(ml_dtypes, name)).itemsize for name in OF_ML_DTYPES]


@pytest.mark.parametrize("code", np.typecodes["All"].replace("O", ""))
def test_all_types_of_numpy(code: str) -> None:
    dtype = np.dtype(code)
    if dtype.itemsize:
        assert item_size(dtype.name) == item_size(dtype.str) == item_size(code) == dtype.itemsize
    else:
        with pytest.raises(TypeError, match="no dtype that is known here, of items of a fixed size"):
            item_size(code)


dtypes = st.recursive(
    st.sampled_from(["<f4", ">i2", "|b1", "|S3", "<U2", "|V5", "<c16", "<M8[ns]"]),
    lambda inner: st.lists(
        st.tuples(st.text(min_size=1, max_size=4), inner, st.lists(st.integers(1, 3), max_size=2)).map(
            lambda field: [*field[:2], field[2]] if field[2] else [*field[:2]]
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda field: field[0],
    ),
    max_leaves=6,
)


def bytes_of(descr: object) -> int:
    """Count the bytes of a ``descr``, without NumPy's help beyond its simple types."""
    if isinstance(descr, str):
        return np.dtype(descr).itemsize
    assert isinstance(descr, list)
    return sum(bytes_of(kind) * math.prod(shape[0] if shape else []) for _, kind, *shape in descr)


@PROPERTY
@given(dtypes)
def test_structured_types(descr: object) -> None:
    text = descr if isinstance(descr, str) else json.dumps(descr)
    if len(text.encode()) <= 4096:
        assert item_size(text) == bytes_of(descr)


@PROPERTY
@given(st.text(max_size=40) | st.text('[]",<>|0123456789fiuSUVMmO{}:- ', max_size=60) | dtypes.map(json.dumps), st.data())
def test_whatever_comes_in_is_a_size_or_refused(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(0, 3))):  # with something of it changed
        place = data.draw(st.integers(0, len(text)))
        text = text[:place] + data.draw(st.sampled_from('[]",<|019fSVO ')) + text[place + data.draw(st.integers(0, 2)) :]
    try:
        size = item_size(text)
    except (TypeError, ValueError) as error:
        assert len(str(error)) < 300
    else:
        assert 0 < size < 2**31


@pytest.mark.parametrize(
    "text", ["[" * 4096, '[["a",' * 500 + '"f4"' + "]]" * 500, '[["a","<f4",' + "[" * 900 + "]" * 900 + "]]"]
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        item_size(text)


numbers = st.integers(0, 5) | st.integers(0, 2**64 - 1)


@PROPERTY
@given(st.sampled_from(["float32", "bfloat16", "|S7"]), st.lists(numbers, max_size=66), st.integers(0, 200))
def test_what_passes_is_an_array_of_numpy(dtype: str, shape: list[int], size_bytes: int) -> None:
    if next(form_problems(dtype, tuple(shape), False, size_bytes), None) is None:
        assert np.ndarray(tuple(shape), dtype_from_text(dtype), bytes(size_bytes)).nbytes == size_bytes
    else:
        assert len(shape) > 64 or math.prod(shape) * item_size(dtype) != size_bytes or math.prod(filter(None, shape)) > 2**60
