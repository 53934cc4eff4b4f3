"""Dtypes as text, and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kaas_client._dtypes import dtype_from_text, dtype_to_text

TEXTS: list[tuple[Any, str]] = [
    ("f4", "float32"),
    (np.uint16, "uint16"),
    (bool, "bool"),
    (">f4", ">f4"),
    ("S5", "|S5"),
    ("U3", "<U3"),
    ("V8", "|V8"),
    ("M8[ns]", "datetime64[ns]"),
    ("c16", "complex128"),
    (ml_dtypes.bfloat16, "bfloat16"),
    (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
    ([("x", "<f4"), ("y", "<i2", (3,))], '[["x", "<f4"], ["y", "<i2", [3]]]'),
    (np.dtype([("a", "u1"), ("b", "<f8")], align=True), '[["a", "|u1"], ["", "|V7"], ["b", "<f8"]]'),
    ([("p", [("q", "<f4"), ("r", ">i2")]), ("s", "S3")], '[["p", [["q", "<f4"], ["r", ">i2"]]], ["s", "|S3"]]'),
]


@pytest.mark.parametrize(("dtype", "text"), TEXTS)
def test_each_dtype_has_a_text(dtype: Any, text: str) -> None:
    assert dtype_to_text(dtype) == text
    assert dtype_from_text(text) == np.dtype(dtype)


@pytest.mark.parametrize("dtype", [object, [("x", object)], np.dtype(("f4", (2, 3))), "nonsense", np.dtypes.StringDType()])
def test_what_bytes_cannot_hold_has_none(dtype: Any) -> None:
    with pytest.raises(TypeError):
        dtype_to_text(dtype)


@pytest.mark.parametrize("text", ["", "object", "O", "nonsense", "[1]", "[", "{}", '[["x", "O"]]', "__name__"])
def test_what_is_no_text_of_one_is_refused(text: str) -> None:
    with pytest.raises(TypeError, match="no dtype that is known here"):
        dtype_from_text(text)
