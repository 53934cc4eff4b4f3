"""What is made of requests, and kept: programs, their modules, and plans with other keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kaas_core.errors import InvalidLibraryError, KaasError, KernelNotFoundError, LibraryNotFoundError, NotEnabledError
from kaas_core.request import BufferSpec, Request
from kaasd.devices.base import Module
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.ipc.messages import SerializedRequest
from kaasd.libraries.registry import Libraries, ResolvedLibrary, describe_library
from kaasd.request import plan as plan_module
from kaasd.request.plan import Plan
from kaasd.worker import programs as module
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Job
from kaasd.worker.executor import Executor
from kaasd.worker.preparation import inspect
from kaasd.worker.programs import UnknownRequest
from tests.conformance.launching import library
from tests.conformance.test_executor import LARGE, SMALL, Bench, finish, serialize

LIMIT = 3
HOST_CODE = Path(__file__).parents[1] / "libraries/data/convention.so"


class CountingDevice(EmulatedDevice):
    """Knows which modules are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = 0
        self.loads = 0

    def load(self, image: bytes) -> Module:
        loaded = super().load(image)
        close = loaded.close

        def count_and_close() -> None:
            self.loaded -= 1
            close()

        loaded.close = count_and_close  # type: ignore[method-assign]
        self.loaded += 1
        self.loads += 1
        return loaded


@pytest.fixture
def device() -> Iterator[CountingDevice]:
    with closing(CountingDevice()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def few_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MODULES", LIMIT)


def upload(bench: Bench, number: int) -> str:
    """Upload a library that differs from all others, and return its id."""
    libraries = Libraries(bench.store)
    content = library("dot") + b"\n// %d\n" % number
    described = describe_library(content)
    libraries.put(described, content)
    return described.id


def square(bench: Bench, library_id: str, n: int = SMALL, kernel: str = "prodKern") -> SerializedRequest:
    """Return the request p = a * a with the kernel of a library."""
    a, p = BufferSpec("a", 4 * n), BufferSpec("p", 4 * n)
    return serialize(Request((replace(bench.product(n, a, a, p), library=library_id, name=kernel),), (a, p)))


def put(bench: Bench, key: str, value: int, n: int = SMALL) -> None:
    bench.put(key, np.full(n, value, np.uint32))


def known(request: SerializedRequest) -> SerializedRequest:
    """Return a request as it comes to a worker that has seen it."""
    return SerializedRequest(request.digest, b"")


def test_modules_beyond_the_limit_go_the_one_used_longest_ago_first(bench: Bench, device: CountingDevice) -> None:
    put(bench, "a", 3)
    requests = [square(bench, upload(bench, number)) for number in range(LIMIT + 2)]
    for request in requests[:LIMIT]:
        bench.run(request)
    assert (device.loaded, device.loads) == (LIMIT, LIMIT)
    # Used again by another program of it, which makes it the last to go.
    bench.run(square(bench, upload(bench, 0), SMALL // 2))
    for request in requests[LIMIT:]:
        bench.run(request)
    assert (device.loaded, device.loads) == (LIMIT, LIMIT + 2)
    bench.run(known(requests[0]))
    for gone in requests[1:3]:
        with pytest.raises(UnknownRequest):
            bench.run(known(gone))
        bench.run(gone)
        assert bench.get("p")[0] == 9
    assert (device.loaded, device.loads) == (LIMIT, LIMIT + 4)


def test_inspected_libraries_stay_below_the_limit(bench: Bench, device: CountingDevice) -> None:
    for number in range(LIMIT + 5):
        job = Job(inspect(bench.executor, upload(bench, number), None, Cancellation()))
        assert [kernel.name for kernel in finish([job])[0].kernels] == ["prodKern", "sumKern"]
        assert device.loaded == min(number + 1, LIMIT)


def test_libraries_of_requests_that_cannot_be_made_stay_below_the_limit(bench: Bench, device: CountingDevice) -> None:
    for number in range(LIMIT + 5):
        with pytest.raises(KernelNotFoundError, match="it has prodKern, sumKern"):
            bench.run(square(bench, upload(bench, number), kernel="quotKern"))
        assert device.loaded == min(number + 1, LIMIT)


def test_a_request_may_use_more_libraries_than_are_kept(bench: Bench, device: CountingDevice) -> None:
    put(bench, "a", 3)
    a, p = BufferSpec("a", 4 * SMALL), BufferSpec("p", 4 * SMALL)
    product = bench.product(SMALL, a, a, p)
    kernels = tuple(replace(product, library=upload(bench, number)) for number in range(LIMIT + 2))
    request = serialize(Request(kernels, (a, p)))
    for _ in range(2):
        bench.run(request)
        assert (device.loaded, device.loads) == (LIMIT + 2, LIMIT + 2)
    bench.run(square(bench, upload(bench, LIMIT + 2)))
    assert device.loaded == LIMIT
    with pytest.raises(UnknownRequest):
        bench.run(known(request))


def test_a_module_that_a_request_uses_stays(bench: Bench, device: CountingDevice) -> None:
    put(bench, "a", 3, LARGE)
    request = square(bench, upload(bench, 0), LARGE)
    bench.run(request)
    program = bench.executor.programs.get(known(request))
    program.requests += 1  # as while its kernels run
    for number in range(1, LIMIT + 3):
        bench.run(square(bench, upload(bench, number)))
    assert device.loaded == LIMIT
    assert bench.executor.programs.get(known(request)) is program
    program.requests -= 1
    for number in range(LIMIT + 3, 2 * LIMIT + 3):
        bench.run(square(bench, upload(bench, number)))
    with pytest.raises(UnknownRequest):
        bench.run(known(request))


def test_the_module_of_a_retired_program_stays_while_a_request_uses_it(bench: Bench, device: CountingDevice) -> None:
    put(bench, "a", 3)
    library_id = upload(bench, 0)
    request = square(bench, library_id)
    bench.run(request)
    program = bench.executor.programs.get(known(request))
    program.requests += 1
    bench.executor.programs.forget_library(library_id)
    for number in range(1, LIMIT + 3):
        bench.run(square(bench, upload(bench, number)))
    loads = device.loads
    bench.run(request)
    assert device.loads == loads
    program.requests -= 1


def test_a_program_that_is_retired_frees_its_memory_now_or_when_its_requests_are_done(bench: Bench) -> None:
    put(bench, "a", 3)
    library_id = upload(bench, 0)
    request = square(bench, library_id)
    memory, programs = bench.executor.memory, bench.executor.programs
    bench.run(request)
    assert memory.held_bytes == 8 * SMALL
    programs.forget_library(upload(bench, 1))
    assert memory.held_bytes == 8 * SMALL
    programs.forget_library(library_id)
    assert memory.held_bytes == 0

    bench.run(request)
    program = programs.get(known(request))
    instance = program.take_instance(memory, bench.executor.device, [])
    programs.forget_library(library_id)
    assert memory.held_bytes == memory.in_use_bytes == 8 * SMALL
    program.give_instance(memory, instance)
    assert memory.held_bytes == 0


def test_a_deleted_library_is_not_found(bench: Bench) -> None:
    put(bench, "a", 3)
    library_id = upload(bench, 0)
    request = square(bench, library_id)
    bench.run(request)
    Libraries(bench.store).delete(library_id)
    bench.executor.programs.forget_library(library_id)
    with pytest.raises(UnknownRequest):
        bench.run(known(request))
    with pytest.raises(LibraryNotFoundError, match=r"^kernels\[0\].library: "):
        bench.run(request)
    upload(bench, 0)
    bench.run(request)


def test_a_file_with_the_code_of_a_deleted_library_goes_on(bench: Bench, tmp_path: Path) -> None:
    put(bench, "a", 3)
    file = tmp_path / "dot.ptx"
    file.write_bytes(library("dot"))
    libraries = Libraries(bench.store, [tmp_path])
    programs = module.Programs(bench.executor.device, libraries, bench.executor.memory)
    with closing(programs):
        request = square(bench, str(file))
        program = programs.get(request)
        settled = ResolvedLibrary(str(file), bench.library, library("dot"), libraries.resolve(str(file)).stamp)
        program.files = program.libraries = (settled,)
        programs.forget_library(bench.library)
        assert program.outdated is False


def test_the_program_for_given_inputs_goes_with_the_one_it_was_made_from(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "dot.ptx"
    file.write_bytes(library("dot"))
    a, p = BufferSpec("a", 4 * SMALL, ephemeral=True), BufferSpec("p", 4 * SMALL)
    kernel = replace(bench.product(SMALL, a, a, p), library=str(file))
    request = serialize(Request((kernel,), (a, p)))
    memory, device, names = bench.executor.memory, bench.executor.device, frozenset("a")
    with closing(module.Programs(device, Libraries(bench.store, [tmp_path]), memory)) as programs:
        program = programs.get(request)
        given = programs.for_inputs(request, program, names)
        assert programs.for_inputs(request, program, names) is given
        given.give_instance(memory, given.take_instance(memory, device, []))
        assert memory.held_bytes == 8 * SMALL

        file.write_bytes(library("dot") + b"\n")
        another = programs.for_inputs(request, programs.get(request), names)
        assert another is not given
        assert (given.outdated, another.outdated) == (True, False)
        assert memory.held_bytes == 0


def test_whether_code_of_a_request_is_loaded(bench: Bench) -> None:
    programs = bench.executor.programs
    first, second = upload(bench, 0), upload(bench, 1)
    request = square(bench, first)
    assert programs.has_code_of(request) is False
    programs.get(request)
    for loaded in (request, known(request), square(bench, first, SMALL // 2)):
        assert programs.has_code_of(loaded) is True
    of_both = (bench.product(SMALL, *[BufferSpec("a", 4 * SMALL)] * 3),) * 2
    kernels = tuple(replace(kernel, library=name) for kernel, name in zip(of_both, (first, second), strict=True))
    assert programs.has_code_of(serialize(Request(kernels, (BufferSpec("a", 4 * SMALL),)))) is False
    # What is wrong with it, ``get`` says.
    assert programs.has_code_of(square(bench, "sha256:" + "0" * 64)) is True


def test_what_a_run_takes_beside_its_buffers_counts(
    bench: Bench, device: CountingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bench, "a", 3)
    monkeypatch.setattr(device, "run_bytes", lambda kernels, textures: 1 << 20)
    before = bench.executor.memory.held_bytes
    bench.run(square(bench, bench.library))
    assert 1 << 20 < bench.executor.memory.held_bytes - before < 2 << 20


def test_only_so_many_programs_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KNOWN_REQUESTS", 2)
    put(bench, "a", 3)
    requests = [square(bench, bench.library, SMALL - 8 * number) for number in range(3)]
    for request in (*requests[:2], known(requests[0]), requests[2], known(requests[0])):
        bench.run(request)
    assert requests[0].digest in bench.executor.programs
    assert requests[1].digest not in bench.executor.programs
    with pytest.raises(UnknownRequest):
        bench.run(known(requests[1]))


def test_plans_with_other_keys_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Mapping[str, str]] = []

    def rebind(plan: Plan, keys: Mapping[str, str]) -> Plan:
        made.append(keys)
        return plan_module.rebind(plan, keys)

    monkeypatch.setattr(module, "rebind", rebind)
    monkeypatch.setattr(module, "MAX_REBOUND", 2)
    program = bench.executor.programs.get(square(bench, bench.library))
    assert program.with_keys({}) is program.plan
    first = program.with_keys({"a": "x", "p": "y"})
    assert [slot.key for slot in first.slots] == ["x", "y"]
    assert program.with_keys({"p": "y", "a": "x"}) is first
    for key in ("z", "w"):
        assert [slot.key for slot in program.with_keys({"a": key}).slots] == [key, "p"]
    assert len(made) == 3
    assert program.with_keys({"a": "x", "p": "y"}) == first
    assert len(made) == 4


def test_instances_are_taken_by_what_they_last_ran_with(bench: Bench) -> None:
    for key, value in (("a", 3), ("b", 4)):
        put(bench, key, value, LARGE)
    request = square(bench, bench.library, LARGE)
    jobs = [bench.begin(request, {"a": key, "p": f"p{key}"}) for key in "ab"]
    finish(jobs)
    program = bench.executor.programs.get(known(request))
    memory, device = bench.executor.memory, bench.executor.device
    while len(program.idle) < 2:
        extra = [program.take_instance(memory, device, []) for _ in range(2)]
        for instance in extra:
            program.give_instance(memory, instance)
    shared = [[memory.use(("value", key, 0, 4 * LARGE))] for key in "ab"]
    assert all(held is not None for (held,) in shared)
    buffers = [list(held.buffers) for (held,) in shared if held is not None]
    for instance, each in zip(program.idle, buffers, strict=True):
        instance.run(each)
    first, second = program.idle
    assert program.take_instance(memory, device, buffers[0]) is first
    assert program.take_instance(memory, device, buffers[0]) is second
    for instance in (second, first):
        program.give_instance(memory, instance)
    assert program.take_instance(memory, device, []) is first  # the last used


@pytest.mark.parametrize(
    ("allowed", "kind", "says"),
    [
        (False, NotEnabledError, "unless it is started with --allow-host-wrappers"),
        (True, InvalidLibraryError, "is host code: host code launches its kernels on a CUDA GPU; the emulated device runs none"),
    ],
)
def test_host_code_is_asked_of_the_device_where_it_is_allowed(
    device: EmulatedDevice, bench: Bench, allowed: bool, kind: type[KaasError], says: str
) -> None:
    with closing(Executor(device, bench.store, Libraries(bench.store), allow_host_wrappers=allowed)) as executor:
        job = Job(inspect(executor, "", HOST_CODE.read_bytes(), Cancellation()))
        with pytest.raises(kind, match=says):
            finish([job])
