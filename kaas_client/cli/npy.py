"""Values as ``.npy`` files."""

from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import typer

from kaas_client.errors import KaasError
from kaas_core.array_form import is_of_ml_dtypes, item_size

if TYPE_CHECKING:
    import numpy as np

    from kaas_client import Value


def read_npy(name: str, file: BinaryIO) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the array of a file. Raises ``typer.BadParameter`` where it holds none, or one of Python's objects."""
    import numpy as np

    try:
        array: np.ndarray[Any, np.dtype[Any]] = np.lib.format.read_array(
            file if file.seekable() else BytesIO(file.read()), allow_pickle=False
        )
    except (ValueError, EOFError, OSError) as error:
        raise typer.BadParameter(f"{name} is no .npy file that can be read: {error}") from None
    return array


def write_npy(value: Value, target: BinaryIO) -> None:
    """Write a value that was stored as an array. Raises ``KaasError`` for another."""
    import numpy as np

    form = value.form
    if form is None:
        raise KaasError(f"the value of {value.entry.key!r} was not stored as an array: it has no dtype; get it without --npy")
    dtype: Any = form.dtype
    if is_of_ml_dtypes(form.dtype):
        dtype = f"V{item_size(form.dtype)}"
        typer.echo(
            f"{value.entry.key}: .npy files have no {form.dtype}: this one has its items as {dtype};"
            f" numpy.load(…).view(ml_dtypes.{form.dtype}) is the array",
            err=True,
        )
        order: Literal["C", "F"] = "F" if form.fortran_order else "C"
        array: np.ndarray[Any, np.dtype[Any]] = np.ndarray(form.shape, dtype, value, order=order)
    else:
        array = value.array()
    # NumPy asks a file for its position, which a pipe has not; of this it only asks that it be written to.
    np.lib.format.write_array(SimpleNamespace(write=target.write), array, allow_pickle=False)
