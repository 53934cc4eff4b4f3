"""Messages and libraries that are not quite right, as hypothesis draws them, and a daemon to send them to.

Whatever comes, front and worker go on, and what is refused is refused with a reason that is documented, and not as a defect of
ours.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2
from kaas_client import Client, Kernel, Request, inout
from kaas_client.arguments import Literal
from kaas_core.errors import BY_REASON, KaasError
from tests.faults.support import as_kaas_error, dot_request
from tests.fuzz.mutate import mutated, noise

SERVICES = [
    executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"],
    library_pb2.DESCRIPTOR.services_by_name["LibraryService"],
    kv_pb2.DESCRIPTOR.services_by_name["KvService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
]
METHODS = {method.full_name: method for service in SERVICES for method in service.methods if method.name != "Drain"}
"""Of a server that drains there is not much to see."""
TIMEOUT_S = 2.0
"""Also of kernels, whose number of threads may have been changed."""
MOST_MESSAGES = 3
LITERALS = {1: "B", 2: "H", 4: "I"}
"""By size in bytes."""
EDGES = [0, 1, 2, 31, 32, 255, 1024, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1]
TEXTS = [
    "",
    "a",
    "b",
    "c",
    "p",
    "\0",
    "..",
    "/",
    "ü" * 200,
    "k" * 401,
    "k" * 5000,
    "dot",
    "emulator",
    "sha256:" + "0" * 64,
    "%s{}",
]
FILES = Path(__file__).parents[1] / "libraries/data"


def examples(library: str) -> dict[str, list[Message]]:
    """Return for each method messages that it accepts, by its full name."""
    dot = dot_request(library)
    dot.return_buffers.append("c")
    invoke = executor_pb2.InvokeRequest(function="dot", return_buffers=["c"])
    invoke.bindings["a"].value = bytes(4096)
    invoke.bindings["b"].key = "b"
    ptx = Path(library).read_bytes()
    given: list[Message] = [
        dot,
        executor_pb2.RegisterFunctionRequest(name="dot", request=dot.request),
        executor_pb2.GetFunctionRequest(name="dot"),
        executor_pb2.DeleteFunctionRequest(name="other"),
        invoke,
        executor_pb2.InvokeStreamRequest(id=1, invoke=invoke, timeout_ns=10**9),
        library_pb2.InspectLibraryRequest(library=library),
        library_pb2.UploadLibraryRequest(header=library_pb2.UploadLibraryHeader(file_name="dot.ptx", size_bytes=len(ptx))),
        library_pb2.UploadLibraryRequest(chunk=ptx),
        kv_pb2.PutRequest(header=kv_pb2.PutHeader(key="a", size_bytes=4096)),
        kv_pb2.PutRequest(chunk=bytes(4096)),
        kv_pb2.GetRequest(key="a", offset_bytes=8, size_bytes=16),
        kv_pb2.StatRequest(key="a"),
        kv_pb2.DeleteRequest(key="other"),
    ]
    kinds = {name: GetMessageClass(method.input_type) for name, method in METHODS.items()}
    return {name: [m for m in given if type(m) is kind] or [kind()] for name, kind in kinds.items()}


def bytes_near(data: bytes) -> st.SearchStrategy[bytes]:
    """Draw what some changes make of ``data``: bytes that are others, cut out, put in, moved, or cut off."""

    def change(rng: random.Random) -> bytes:
        content = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(content) + 1)
            # Headers are at the beginning; what is there is changed more often.
            at = min(at, rng.choice((64, 1024, len(content))))
            size = rng.choice((1, 1, 2, 4, 8, 100))
            match rng.randrange(6):
                case 0:
                    content[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    content[at : at + size] = rng.choice(EDGES).to_bytes(8, "little")[: min(size, 8)]
                case 2:
                    del content[at : at + size]
                case 3:
                    content[at:at] = bytes(rng.randrange(256) for _ in range(size))
                case 4:
                    start = rng.randrange(len(content) + 1)
                    content[at : at + size] = content[start : start + size]
                case 5:
                    del content[max(at, len(content) - size) if rng.random() < 0.5 else at :]
        return bytes(content)

    return st.randoms(use_true_random=False).map(change)


def _value(draw: Any, field: Field, depth: int) -> Any:
    if field.message_type is not None:
        return messages_like(draw, GetMessageClass(field.message_type)(), depth + 1)
    match field.cpp_type:
        case Field.CPPTYPE_STRING if field.type == Field.TYPE_BYTES:
            return draw(st.one_of(st.binary(max_size=64), st.sampled_from([bytes(4096), bytes(4)])))
        case Field.CPPTYPE_STRING:
            return draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)))
        case Field.CPPTYPE_BOOL:
            return draw(st.booleans())
        case Field.CPPTYPE_ENUM:
            return draw(st.integers(0, 9))
        case Field.CPPTYPE_DOUBLE | Field.CPPTYPE_FLOAT:
            return draw(st.sampled_from([0.0, -1.5, 1e300, float("inf"), float("nan")]))
        case Field.CPPTYPE_INT32:
            return draw(st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]))
        case Field.CPPTYPE_INT64:
            return draw(st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]))
        case Field.CPPTYPE_UINT32:
            return draw(st.sampled_from([edge for edge in EDGES if edge < 2**32]))
        case _:
            return draw(st.sampled_from([*EDGES, 2**64 - 1]))


def messages_like(draw: Any, message: Message, depth: int = 0) -> Message:
    """Return ``message`` with some of its fields changed, at any depth."""
    for field in message.DESCRIPTOR.fields:
        if depth > 4 or draw(st.integers(0, 3)) != 0:
            continue
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            entries, value = getattr(message, field.name), field.message_type.fields_by_name["value"]
            name = draw(st.sampled_from(TEXTS))
            if value.message_type is not None:
                entries[name].CopyFrom(_value(draw, value, depth))
            else:
                entries[name] = _value(draw, value, depth)
        elif field.is_repeated:
            items = getattr(message, field.name)
            if len(items) and draw(st.booleans()):
                place = draw(st.integers(0, len(items) - 1))
                if field.message_type is not None:
                    messages_like(draw, items[place], depth + 1)
                else:
                    items[place] = _value(draw, field, depth)
            elif len(items) and draw(st.booleans()):
                del items[draw(st.integers(0, len(items) - 1))]
            else:
                items.append(_value(draw, field, depth))
        elif field.message_type is not None:
            messages_like(draw, getattr(message, field.name), depth + 1)
        else:
            setattr(message, field.name, _value(draw, field, depth))
    return message


@st.composite
def calls(draw: Any, of: dict[str, list[Message]]) -> tuple[str, list[bytes]]:
    """Draw a method's name, and the messages that it is sent."""
    name = draw(st.sampled_from(sorted(of)))
    number = draw(st.integers(0, MOST_MESSAGES)) if METHODS[name].client_streaming else 1
    sent = []
    for _ in range(number):
        message = type(of[name][0])()
        message.CopyFrom(draw(st.sampled_from(of[name])))
        if draw(st.booleans()):
            sent.append(messages_like(draw, message).SerializeToString())
        else:
            sent.append(draw(bytes_near(message.SerializeToString())))
    return name, sent


@st.composite
def ptx(draw: Any, texts: Sequence[str]) -> bytes:
    """Draw PTX with something in it changed, or words of PTX in any order."""
    rng = draw(st.randoms(use_true_random=False))
    return (noise(rng) if rng.random() < 0.1 else mutated(rng, rng.choice(texts))).encode()


@dataclasses.dataclass
class Target:
    """A daemon that may not mind."""

    kaas: Client
    channel: grpc.Channel
    worker: int
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    """Of calls, by the reason of their refusal, or ``OK``."""

    def send(self, name: str, messages: list[bytes]) -> None:
        """Make a call of raw messages; check how it ends, and that nothing else has."""
        method = METHODS[name]
        path = f"/{method.containing_service.full_name}/{method.name}"
        kind = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, False): self.channel.stream_unary,
            (True, True): self.channel.stream_stream,
        }[method.client_streaming, method.server_streaming]
        try:
            answer = kind(path)(iter(messages) if method.client_streaming else messages[0], timeout=TIMEOUT_S)
            if method.server_streaming:
                list(answer)
            self.outcomes["OK"] += 1
        except grpc.RpcError as error:
            self.check_refusal(as_kaas_error(error, self.kaas.address))
        self.check()

    def upload(self, content: bytes) -> str | None:
        """Upload a library; return its id where it is taken. Checks as ``send``."""
        library = None
        try:
            library = self.kaas.upload(content, timeout=30)
            self.outcomes["OK"] += 1
        except KaasError as error:
            self.check_refusal(error)
        self.check()
        return library

    def run(self, library: str) -> None:
        """Run each kernel of a library once, on a buffer for each parameter of eight bytes. Checks as ``send``."""
        try:
            for info in self.kaas.inspect(library, timeout=30).kernels:
                sizes = enumerate(info.parameter_size_bytes)
                arguments = [
                    inout(f"b{i}", 4096, ephemeral=True) if size == 8 else Literal(LITERALS.get(size, "I"), 1)
                    for i, size in sizes
                ]
                self.kaas.submit(Request([Kernel(library, info.name, 1, 32, arguments)]), timeout=TIMEOUT_S)
                self.outcomes["ran"] += 1
        except KaasError as error:
            self.check_refusal(error)
        self.check()

    def check_refusal(self, error: KaasError) -> None:
        self.outcomes[error.reason] += 1
        assert error.reason in BY_REASON and error.reason != "INTERNAL", error

    def check(self) -> None:
        """Front and worker are those of before."""
        (device,) = self.kaas.devices()
        assert (device.worker_pid, device.state) == (self.worker, "ready")
