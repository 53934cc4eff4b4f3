"""Arrays of any kind on their way into the store, and back: what is said of them, what is copied, what is refused."""

from __future__ import annotations

import array
import ctypes
import pickle
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kaas.v1 import executor_pb2, kv_pb2
from kaas_client import Kernel, Request, Value, inp, out
from kaas_core.protobuf import request_to_proto
from tests.client.fake_server import FakeServer

MATRIX = np.arange(12, dtype="f4").reshape(3, 4)


def put(client: Any, server: FakeServer, value: Any, **options: Any) -> tuple[kv_pb2.PutHeader, bytes]:
    """Put something; return what was said of it, and its bytes."""
    server.expect("Put", kv_pb2.PutResponse(entry=kv_pb2.Entry(key="k", version=5)))
    client.put("k", value, **options)
    header, *chunks = server.calls[-1].request
    return header.header, b"".join(message.chunk for message in chunks)


def got(client: Any, server: FakeServer, header: kv_pb2.PutHeader, content: bytes, **where: Any) -> Value:
    """Get what was put so."""
    fields = {"size_bytes": header.size_bytes, "dtype": header.dtype, "shape": header.shape}
    entry = kv_pb2.Entry(key="k", version=5, fortran_order=header.fortran_order, **fields)  # type: ignore[arg-type]
    parts = [kv_pb2.GetResponse(chunk=content[start : start + 7]) for start in range(0, len(content), 7)]
    server.expect("Get", [kv_pb2.GetResponse(entry=entry), *parts])
    value = client.get("k", **where)
    assert type(value) is Value
    return value


ARRAYS: list[tuple[Any, str, tuple[int, ...]]] = [
    (MATRIX, "float32", (3, 4)),
    (MATRIX.astype(">f4"), ">f4", (3, 4)),
    (MATRIX.astype(ml_dtypes.bfloat16), "bfloat16", (3, 4)),
    (MATRIX.astype(ml_dtypes.float8_e5m2), "float8_e5m2", (3, 4)),
    (MATRIX.astype("c16"), "complex128", (3, 4)),
    (np.zeros(3, [("x", "<f4"), ("y", "<i2", (2,))]), '[["x", "<f4"], ["y", "<i2", [2]]]', (3,)),
    (np.array(["a", "bcd"]), "<U3", (2,)),
    (np.array([1, 2], "M8[ns]"), "datetime64[ns]", (2,)),
    (np.array(7, "u1"), "uint8", ()),
    (np.float16(7), "float16", ()),
    (np.zeros((), [("x", "u1")])[()], '[["x", "|u1"]]', ()),
    (np.zeros((0, 5), "i8"), "int64", (0, 5)),
    (np.zeros((2,) * 20, bool), "bool", (2,) * 20),
]


@pytest.mark.parametrize(("value", "dtype", "shape"), ARRAYS, ids=[f"{dtype}{shape}"[:40] for _, dtype, shape in ARRAYS])
@pytest.mark.filterwarnings("error")
def test_an_array_comes_back_as_it_was(client: Any, server: FakeServer, value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    header, content = put(client, server, value)
    assert (header.dtype, tuple(header.shape), header.fortran_order) == (dtype, shape, False)
    assert content == np.asarray(value).tobytes()
    back = got(client, server, header, content)
    assert back == content
    array_again = back.array()
    assert (array_again.dtype, array_again.shape, array_again.flags.writeable) == (value.dtype, shape, False)
    assert array_again.tobytes() == np.asarray(value).tobytes()


@pytest.mark.filterwarnings("error")
def test_the_order_of_fortran(client: Any, server: FakeServer) -> None:
    fortran = np.asfortranarray(MATRIX)
    header, content = put(client, server, fortran, order="F")
    assert (tuple(header.shape), header.fortran_order, content) == ((3, 4), True, MATRIX.T.tobytes())
    back = got(client, server, header, content).array()
    assert back.flags.f_contiguous
    assert np.array_equal(back, MATRIX)
    header, _ = put(client, server, MATRIX[:, :1].copy(), order="F")
    assert not header.fortran_order


@pytest.mark.parametrize(
    ("value", "order", "words"),
    [
        (np.asfortranarray(MATRIX), "C", r"in the order of Fortran \(order='F' keeps it\), and is copied"),
        (MATRIX, "F", "in the order of C, and is copied"),
        (np.repeat(MATRIX, 2, axis=1)[:, ::2], "C", "not contiguous, and is copied"),
        (np.repeat(MATRIX, 2, axis=1)[:, ::2], "F", "not contiguous, and is copied"),
        (MATRIX[::-1, ::-1], "C", "not contiguous, and is copied"),
        (np.broadcast_to(np.float32(3), (3, 4)), "C", "not contiguous, and is copied"),
    ],
)
def test_what_lies_otherwise_is_copied_with_a_word(client: Any, server: FakeServer, value: Any, order: str, words: str) -> None:
    with pytest.warns(UserWarning, match=f"the array for key 'k' is {words}"):
        header, content = put(client, server, value, order=order)
    assert header.fortran_order == (order == "F")
    assert content == value.tobytes(order)
    assert np.array_equal(got(client, server, header, content).array(), value)


def test_an_order_that_there_is_not(client: Any, server: FakeServer) -> None:
    with pytest.raises(ValueError, match="order must be 'C' or 'F', not 'K'"):
        client.put("k", MATRIX, order="K")
    assert server.calls == []


@pytest.mark.parametrize("value", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), array.array("I", [1]), np.bytes_(b"abcd")])
def test_bytes_have_no_dtype(client: Any, server: FakeServer, value: Any) -> None:
    header, content = put(client, server, value)
    assert (header.dtype, list(header.shape)) == ("", [])
    back = got(client, server, header, content)
    assert back == bytes(value)
    assert isinstance(back, bytes)
    with pytest.raises(TypeError, match="nothing says what array key 'k' holds: it was stored without a dtype"):
        back.array()
    assert back.array("u1").tolist() == list(bytes(value))


def test_a_range_is_no_array(client: Any, server: FakeServer) -> None:
    header, content = put(client, server, MATRIX)
    part = got(client, server, header, content[4:12], offset=4, size=8)
    assert part.entry.shape == (3, 4)
    with pytest.raises(TypeError, match="this is only a range of it"):
        part.array()
    assert part.array("f4").tolist() == [1, 2]


def test_a_value_can_be_put_again_and_pickled(client: Any, server: FakeServer) -> None:
    header, content = put(client, server, MATRIX)
    back = got(client, server, header, content)
    assert put(client, server, back) == (header, content)
    again = pickle.loads(pickle.dumps(back))
    assert (again, again.entry) == (back, back.entry)
    assert np.array_equal(again.array(), MATRIX)
    part = got(client, server, header, content[:8], size=8)
    assert put(client, server, part)[0].dtype == ""


def test_a_dtype_that_is_not_known_here(client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    header, content = put(client, server, MATRIX.astype(ml_dtypes.bfloat16))
    back = got(client, server, header, content)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match="key 'k': 'bfloat16' is a dtype of the package ml_dtypes, which is not installed here"):
        back.array()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([1, "x"], object), "values of object are not made of bytes"),
        (np.zeros(1, np.dtype({"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [0, 2]})), "has fields that overlap"),
        (np.zeros(1, [("a", ml_dtypes.bfloat16)]), "no name for, such as bfloat16"),
        (np.zeros(1, [(f"field{number}", "f4") for number in range(400)]), "has more than 4096 bytes"),
        (np.zeros(1, "V0"), "not made of bytes"),
    ],
)
def test_what_no_dtype_describes_is_refused(client: Any, server: FakeServer, value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"the items of the array for key 'k' are not plain bytes.*{words}"):
        client.put("k", value)
    assert server.calls == []


def test_a_dtype_of_a_buffer_that_cannot_be(client: Any) -> None:
    for make in (inp, out):
        with pytest.raises(TypeError, match="buffer 'x': values of object are not made of bytes"):
            make("x", dtype=object, shape=3)


# Arrays of other packages.


class OnHost:
    """An array of another package, on the host."""

    def __dlpack__(self, **options: Any) -> Any:
        return MATRIX.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class OnGpu(OnHost):
    """One on a GPU, which its package copies."""

    def __dlpack__(self, *, dl_device: Any = None, **options: Any) -> Any:
        assert dl_device == (1, 0)
        return MATRIX.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class Unable(OnGpu):
    """One whose package does not copy."""

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("copy it yourself")


class Other(OnHost):
    """One of a type that NumPy knows only by ml_dtypes, as JAX and PyTorch hand it out, in either kind of capsule."""

    def __init__(self, array_: np.ndarray, code: int, bits: int, *, is_versioned: bool = False) -> None:
        self._array, self._type, self._is_versioned = array_.view(f"u{array_.itemsize}"), bytes((code, bits)), is_versioned

    def __dlpack__(self, **options: Any) -> Any:
        if not self._is_versioned:
            options = {}
        capsule = self._array.__dlpack__(**options)
        name, place = (b"dltensor_versioned", 32 + 20) if self._is_versioned else (b"dltensor", 20)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
        ctypes.memmove(pointer(capsule, name) + place, self._type, 2)
        return capsule


class OtherOnGpu(Other):
    """One on a GPU, which its package copies."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class OnlyArray(Unable):
    """One of a type that DLPack does not have, such as int4 of JAX."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return MATRIX.astype(ml_dtypes.int4)


def cuda_array(array_: np.ndarray, **more: Any) -> SimpleNamespace:
    """Return an array that only tells where it lies."""
    fields = {"typestr": array_.dtype.str, "shape": array_.shape, "data": (array_.ctypes.data, False), "version": 3}
    return SimpleNamespace(__cuda_array_interface__=fields | more, kept=array_)


class FakeDriver(ModuleType):
    """CUDA's driver for a GPU whose memory is the host's."""

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.CUresult = SimpleNamespace(CUDA_SUCCESS=0)
        self.CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
        self.calls: list[Any] = []
        self.status: Any = 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            values = {"cuPointerGetAttribute": 1, "cuDeviceGet": "device", "cuDevicePrimaryCtxRetain": "context"}
            return 0, values.get(name)

        return call

    @staticmethod
    def CUstream(handle: int) -> tuple[str, int]:
        return "stream", handle

    def cuMemcpyDtoH(self, target: int, source: int, size_bytes: int) -> tuple[Any]:
        self.calls.append(("cuMemcpyDtoH", size_bytes))
        if not self.status:
            ctypes.memmove(target, source, size_bytes)
        return (self.status,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    import cuda.bindings

    fake = FakeDriver()
    monkeypatch.setattr(cuda.bindings, "driver", fake, raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    return fake


@pytest.mark.filterwarnings("error")
def test_an_array_on_the_host_is_not_copied_with_a_word(client: Any, server: FakeServer) -> None:
    header, content = put(client, server, OnHost())
    assert (header.dtype, list(header.shape), content) == ("float32", [3, 4], MATRIX.tobytes())


def test_an_array_on_a_gpu_is_copied_with_a_word(client: Any, server: FakeServer) -> None:
    with pytest.warns(UserWarning, match="the array for key 'k' lies on a GPU, and is copied to the host"):
        header, content = put(client, server, OnGpu())
    assert (header.dtype, list(header.shape), content) == ("float32", [3, 4], MATRIX.tobytes())


CODES = [  # DLPack's
    ("bfloat16", 4),
    ("float8_e3m4", 7),
    ("float8_e4m3", 8),
    ("float8_e4m3b11fnuz", 9),
    ("float8_e4m3fn", 10),
    ("float8_e4m3fnuz", 11),
    ("float8_e5m2", 12),
    ("float8_e5m2fnuz", 13),
    ("float8_e8m0fnu", 14),
]


@pytest.mark.parametrize("is_versioned", [False, True], ids=["old", "versioned"])
@pytest.mark.parametrize(("name", "code"), CODES, ids=[name for name, _ in CODES])
@pytest.mark.filterwarnings("error")
def test_types_that_numpy_does_not_take_by_dlpack(
    client: Any, server: FakeServer, name: str, code: int, is_versioned: bool
) -> None:
    array_ = np.array([[1, 2, 4], [8, 16, 0.5]]).astype(getattr(ml_dtypes, name))
    header, content = put(client, server, Other(array_, code, 8 * array_.itemsize, is_versioned=is_versioned))
    assert (header.dtype, list(header.shape), content) == (name, [2, 3], array_.tobytes())


def test_those_may_lie_in_any_order_and_on_a_gpu(client: Any, server: FakeServer) -> None:
    array_ = MATRIX.astype(ml_dtypes.bfloat16)
    for each in (array_[::-1, ::2], array_.T):
        with pytest.warns(UserWarning, match="is copied"):
            header, content = put(client, server, Other(each, 4, 16))
        assert (header.dtype, tuple(header.shape), content) == ("bfloat16", each.shape, each.tobytes())
    with pytest.warns(UserWarning, match="lies on a GPU, and is copied to the host"):
        header, content = put(client, server, OtherOnGpu(array_, 4, 16, is_versioned=True))
    assert (header.dtype, content) == ("bfloat16", array_.tobytes())


def test_what_comes_by_dlpack_has_a_known_layout(client: Any, server: FakeServer) -> None:
    """Neither several items in one, nor fewer bits than a byte, nor an unknown code."""
    for code, bits in ((17, 4), (15, 6), (4, 8), (99, 8)):
        with pytest.raises(TypeError, match="the array for key 'k' cannot be taken as it is"):
            client.put("k", Other(np.zeros(4, "u1"), code, bits))
    assert server.calls == []


def test_those_need_ml_dtypes(client: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"for key 'k' .*'bfloat16' is a dtype of the package ml_dtypes, which is not installed"):
        client.put("k", Other(MATRIX.astype("f2"), 4, 16))
    assert server.calls == []


def test_what_no_interface_gives_its_package_makes_an_array(client: Any, server: FakeServer) -> None:
    with pytest.warns(UserWarning, match="lies on a GPU, and is copied to the host"):
        header, content = put(client, server, OnlyArray())
    assert (header.dtype, list(header.shape), content) == ("int4", [3, 4], MATRIX.astype(ml_dtypes.int4).tobytes())


class Training(Unable):
    """What PyTorch says of a tensor on a GPU that needs gradients: the property fails with more than ``AttributeError``."""

    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("it requires grad")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_first_reason_is_told(client: Any, server: FakeServer) -> None:
    with pytest.raises(TypeError, match="the array for key 'k' cannot be taken as it is: copy it yourself"):
        client.put("k", Training())
    assert server.calls == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_void_in_an_order_of_bytes_is_bfloat16(client: Any, server: FakeServer, driver: FakeDriver) -> None:
    """So say PyTorch and CuPy; NumPy would make it void of two bytes."""
    array_ = MATRIX.astype(ml_dtypes.bfloat16)
    for descr in ({}, {"descr": [("", "<V2")]}):
        header, content = put(client, server, cuda_array(array_.view("u2"), typestr="<V2", **descr))
        assert (header.dtype, content) == ("bfloat16", array_.tobytes())
    assert put(client, server, cuda_array(np.zeros(3, "V2")))[0].dtype == "|V2"
    with pytest.raises(TypeError, match="of 8 bits or less, of a type that its interface does not tell"):
        client.put("k", cuda_array(MATRIX.view("u1"), typestr="<V1"))


@pytest.mark.parametrize(
    "array_",
    [MATRIX, np.asfortranarray(MATRIX), MATRIX[::-1, 1::2], np.array(5, "u2"), np.zeros(2, [("a", "f4"), ("b", "i2")])],
    ids=["C", "Fortran", "strided", "no dimensions", "structured"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_array_of_which_only_the_cuda_array_interface_tells(
    client: Any, server: FakeServer, driver: FakeDriver, array_: np.ndarray
) -> None:
    more = {"strides": array_.strides, "descr": np.lib.format.dtype_to_descr(array_.dtype)}
    header, content = put(client, server, cuda_array(array_, stream=7, **more))
    assert content == array_.tobytes()
    assert np.dtype(np.array(got(client, server, header, content).array()).dtype) == array_.dtype
    names = [call[0] for call in driver.calls]
    assert names[:4] == ["cuInit", "cuPointerGetAttribute", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    assert names[4:] == [
        "cuCtxPushCurrent",
        "cuStreamSynchronize",
        "cuMemcpyDtoH",
        "cuCtxPopCurrent",
        "cuDevicePrimaryCtxRelease",
    ]
    assert ("cuStreamSynchronize", ("stream", 7)) in driver.calls


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_strides_and_without_elements(client: Any, server: FakeServer, driver: FakeDriver) -> None:
    assert put(client, server, cuda_array(MATRIX, strides=None))[1] == MATRIX.tobytes()
    assert "cuStreamSynchronize" not in [call[0] for call in driver.calls]
    driver.calls.clear()
    header, content = put(client, server, cuda_array(np.zeros((3, 0), "f4"), data=(0, False)))
    assert (list(header.shape), content, driver.calls) == ([3, 0], b"", [])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_where_dlpack_does_not_copy_the_interface_is_used(client: Any, server: FakeServer, driver: FakeDriver) -> None:
    array_ = Unable()
    array_.__dict__["__cuda_array_interface__"] = cuda_array(MATRIX).__cuda_array_interface__
    assert put(client, server, array_)[1] == MATRIX.tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_copied_is_refused(client: Any, server: FakeServer, driver: FakeDriver) -> None:
    driver.status = SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE")
    for array_, words in (
        (Unable(), "copy it yourself"),
        (cuda_array(MATRIX), "the CUDA driver says CUDA_ERROR_INVALID_VALUE"),
        (cuda_array(MATRIX, mask=cuda_array(MATRIX)), "its mask would be lost"),
        (cuda_array(MATRIX, typestr="?!"), "data type '.!' not understood"),
    ):
        with pytest.raises(TypeError, match=f"the array for key 'k' cannot be taken as it is: {words}.*copy it into"):
            client.put("k", array_)
    assert [call[0] for call in driver.calls][-2:] == ["cuCtxPopCurrent", "cuDevicePrimaryCtxRelease"]
    assert server.calls == []


def test_calls_take_them_too(client: Any, server: FakeServer, driver: FakeDriver) -> None:
    request = Request([Kernel("/k.ptx", "k", args=[inp("a", 48), out("c", 4)])])
    message = executor_pb2.Function(name="f", request=request_to_proto(request.spec))
    server.expect("GetFunction", executor_pb2.GetFunctionResponse(function=message))
    function = client.function("f")
    for array_ in (OnGpu(), cuda_array(MATRIX)):
        server.expect("Invoke", executor_pb2.InvokeResponse())
        with pytest.warns(UserWarning, match="the array for buffer 'a' lies on a GPU, and is copied to the host"):
            function(a=array_)
        assert server.calls[-1].request.bindings["a"].value == MATRIX.tobytes()
        server.expect("Submit", executor_pb2.SubmitResponse())
        with pytest.warns(UserWarning, match="buffer 'a' lies on a GPU"):
            client.submit(request, inputs={"a": array_})
        assert server.calls[-1].request.inputs["a"] == MATRIX.tobytes()
    server.expect("Invoke", executor_pb2.InvokeResponse())
    half = np.arange(24).astype(ml_dtypes.bfloat16)
    function(a=Other(half, 4, 16))
    assert server.calls[-1].request.bindings["a"].value == half.tobytes()
    for call in (function, lambda a: client.submit(request, inputs={"a": a})):
        server.expect("Invoke" if call is function else "Submit", executor_pb2.InvokeResponse())
        with pytest.warns(UserWarning, match="^the array for buffer 'a' is not contiguous, and is copied$"):
            call(a=MATRIX[::-1])
    with pytest.raises(TypeError, match="buffer 'a': the items of an array of object are not plain bytes"):
        function(a=np.array([None]))


def test_one_of_another_package_in_the_order_of_fortran(client: Any, server: FakeServer, driver: FakeDriver) -> None:
    request = Request([Kernel("/k.ptx", "k", args=[inp("a", dtype="f4", shape=(3, 4), fortran_order=True), out("c", 4)])])
    for array_ in (OnHost(), OnGpu(), cuda_array(MATRIX), MATRIX):
        server.expect("Submit", executor_pb2.SubmitResponse())
        with warnings.catch_warnings(record=True) as words:
            warnings.simplefilter("always")
            client.submit(request, inputs={"a": array_})
        assert len(words) == (array_ is not MATRIX and type(array_) is not OnHost)
        assert server.calls[-1].request.inputs["a"] == MATRIX.tobytes("F")
