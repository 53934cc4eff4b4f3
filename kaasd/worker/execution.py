"""One request on its way: memory, inputs, kernels, outputs, and the one commit at the end.

Until the commit nothing outside the device has changed, so whatever fails before it leaves the store as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from functools import partial
from time import monotonic, perf_counter_ns
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from kaas.v1 import trace_pb2
from kaas_core import ReadableBuffer
from kaas_core.errors import InvalidRequestError, KeyNotFoundError, RequestIdReusedError
from kaas_core.violations import shown
from kaasd.compiler.compiler import Compilation
from kaasd.devices.base import Awaited, DeviceDownload, OutOfMemory, Run
from kaasd.devices.trace import Tracer
from kaasd.ipc.messages import SerializedRequest
from kaasd.request.plan import Plan, Slot
from kaasd.store.base import DEFAULT_ACCOUNT, Entry, KeyExistsError, Write
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.compiling import load_kernels, with_libraries
from kaasd.worker.executor import DEVICE_ERRORS, NOTHING, Executor, Steps
from kaasd.worker.inputs import BoundRequest, SnapshotChanged, ValueHolding, bytes_needed, value_key, values_needed
from kaasd.worker.programs import NotCompiled, Program
from kaasd.worker.residency import NoRoomError, Owner, OwnerLimitError
from kaasd.worker.tracing import read_trace

KEPT_INTERVAL = 16.0
"""In so many uses of anything what was stored is expected to be read, if ever: the older it is, the less so."""


class Invocation(NamedTuple):
    """A request as it is to be run."""

    request: SerializedRequest
    keys: Mapping[str, str]
    """In place of the request's own, by buffer name."""
    inputs: Mapping[str, ReadableBuffer]
    """In place of the store's values, by buffer name."""
    return_buffers: Sequence[str]
    cancellation: Cancellation
    trace_from_ns: int = 0
    """Where not 0, the result is to have a trace that begins at this ``perf_counter_ns``."""
    input_keys: Mapping[str, str] = MappingProxyType({})
    """Keys whose values some of ``inputs`` are, and remain: where the device has one it is not brought there again."""
    on_commit: Callable[[], object] = lambda: None
    """Called before the store may change."""
    on_waiting: Callable[[bool], object] = lambda begins: None
    """Called with True when it waits for the memory or slot of others, and with False when it goes on or looks."""
    kept: Callable[[Result, Sequence[str]], Write] | None = None
    """Given what is known of the result before it is stored, and the keys that are written, in order, returns what is stored last
    with them. It must be new, and nothing else fails for not being so. Not called where nothing is stored."""
    group: str = DEFAULT_ACCOUNT
    """Whom what is stored counts for."""
    priority: int = 0
    """As for ``Run.start``."""
    max_device_memory_bytes: int = 0
    """Of the device's memory that may count for the group; 0: no limit."""


class Result(NamedTuple):
    """A request that ran and is committed."""

    outputs: Mapping[str, bytes]
    """The buffers asked for, by name."""
    versions: Mapping[str, int]
    """New versions, by key."""
    printed: str
    """By device code, where the device can tell."""
    kernels_launched: int
    plan_ns: int
    load_ns: int
    run_ns: int
    commit_ns: int
    trace: trace_pb2.Trace | None = None
    brought_bytes: int = 0
    """Of stored inputs that stay on the device."""
    new_program: bool = False
    """Its program has not run before."""
    device_ns: int = 0
    """What it has used of its device, as ``DeviceTime`` says."""
    slot_ns: int = 0
    """For how long it has waited for others, with its inputs there."""


T = TypeVar("T")


class Job(Generic[T]):
    """Something under way. Whoever runs it polls until it has its result, and may wait in between."""

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self._awaited: Awaited = NOTHING

    def poll(self) -> T | None:
        """Go as far as is possible without waiting; return the result at the end. Raises ``KaasError``, and is over then."""
        try:
            self._awaited = next(self._steps)
        except StopIteration as end:
            result: T = end.value
            return result
        return None

    def wait(self) -> None:
        """Return when it is worth polling again."""
        self._awaited.wait()

    @property
    def is_committing(self) -> bool:
        """Whether it has left the device and waits for the store alone."""
        return isinstance(self._awaited, _Commit)

    @property
    def is_compiling(self) -> bool:
        """Whether it waits for its code alone."""
        return isinstance(self._awaited, Compilation)

    @property
    def awaits_slot(self) -> bool:
        """Whether it waits for others to end, and has nothing on the device but its inputs."""
        return isinstance(self._awaited, _Slot) and not self._awaited.taken

    @property
    def awaits_memory(self) -> bool:
        """Whether it waits for others to leave it memory, and has nothing on the device."""
        return isinstance(self._awaited, _Memory) and not self._awaited.taken

    @property
    def awaits_what_is_done(self) -> bool:
        """Whether it is worth polling again."""
        return self._awaited.done()

    @property
    def expected_end_ns(self) -> int:
        """When its run should end by how long it took the last time, by ``perf_counter_ns``; 0 where that is not known."""
        return self._awaited.expected_end_ns if isinstance(self._awaited, _Running) else 0

    def close(self) -> None:
        """End it: wait for what is under way, on the device and in the store, and free what it holds. Idempotent."""
        self._steps.close()


class Execution:
    """One run of a request."""

    def __init__(self, executor: Executor, invocation: Invocation) -> None:
        self._executor = executor
        self._invocation = invocation
        self._owner = Owner(invocation.group, invocation.max_device_memory_bytes)
        self._tracer: Tracer[Any] | None = None
        self._device_ns = 0

    def steps(self) -> Steps[Result]:
        """Run. Raises ``KaasError`` or ``UnknownRequest``, and has then left the store as it was."""
        executor, invocation = self._executor, self._invocation
        cancellation = invocation.cancellation
        started = perf_counter_ns()
        if invocation.request.digest not in executor.programs or executor.device_lost:
            has_code = partial(executor.programs.has_code_of, invocation.request)
            yield from executor.until_loadable(has_code, cancellation)
        try:
            program = executor.programs.get(invocation.request)
        except NotCompiled:
            program = yield from with_libraries(executor, partial(executor.programs.get, invocation.request), cancellation)
        if program.plan.read_ephemerals and (given := program.plan.read_ephemerals & invocation.inputs.keys()):
            program = executor.programs.for_inputs(invocation.request, program, given)
        plan = program.with_keys(invocation.keys)
        _check_sizes(plan, invocation.inputs)
        planned = perf_counter_ns()
        downloads: list[DeviceDownload] = []
        kept: dict[int, ValueHolding] = {}
        stored = False
        program.requests += 1
        new_program = not program.run_ns
        try:
            try:
                if not program.idle:
                    yield from executor.until_loadable(lambda: program.is_ready, cancellation)
                    if executor.compiler is not None:
                        yield from load_kernels(executor, program, cancellation)
                if invocation.trace_from_ns:
                    self._tracer = executor.device.tracer()
                bound = yield from self._bind(program, plan)
                try:
                    if cancellation.reason is not None:
                        raise cancellation.reason
                    loaded = begun = perf_counter_ns()
                    if not executor.slots.take(self, invocation.priority, invocation.group):
                        yield from self._until_slot(bound)
                        begun = perf_counter_ns()
                    yield from self._launch(program, bound)
                    if cancellation.reason is not None:
                        raise cancellation.reason
                    ran = perf_counter_ns()
                    printed = bound.run.printed
                    contents = self._read(program, plan, bound, downloads)
                    for download in downloads:
                        while not download.done():
                            yield download
                    kept, brought_bytes = bound.take_kept(), bound.brought_bytes
                finally:
                    bound.close()
            except DEVICE_ERRORS as error:
                raise executor.explain(error, plan, cancellation, self._owner) from error
            except KeyNotFoundError as error:
                raise _explain_missing(error, plan) from error
            finally:
                program.requests -= 1
            writes = self._writes(plan, contents)
            kept_reply = result = None
            if invocation.kept is not None and writes:
                durations = planned - started, loaded - planned, ran - begun, 0
                result = Result(self._outputs(contents), {}, printed, len(plan.launches) * plan.iterations, *durations)
                kept_reply = invocation.kept(result, [write.key for write in writes])
            versions = yield from self._commit(writes, kept_reply)
            for index, held in kept.items():
                self._keep(plan.slots[index], held, versions)
            stored = True
            outputs = self._outputs(contents) if result is None else result.outputs
            committed = perf_counter_ns()
            trace = None
            if self._tracer is not None:
                stages = {"plan": (started, planned), "load": (planned, loaded), "run": (begun, ran), "commit": (ran, committed)}
                for name, times in stages.items():
                    self._tracer.stage(name, *times)
                trace = read_trace(self._tracer, invocation.trace_from_ns, plan.launches)
        finally:
            executor.slots.leave(self)
            for download in downloads:
                download.wait()
                download.close()
            for held in kept.values():
                if not stored:
                    executor.memory.drop(held)  # comes first: what was released may have gone
                executor.memory.release(held, self._owner)
            if self._tracer is not None:
                self._tracer.close()
        return Result(
            outputs=outputs,
            versions=versions,
            printed=printed,
            kernels_launched=len(plan.launches) * plan.iterations,
            plan_ns=planned - started,
            load_ns=loaded - planned,
            run_ns=ran - begun,
            commit_ns=committed - ran,
            trace=trace,
            brought_bytes=brought_bytes,
            new_program=new_program,
            device_ns=self._device_ns,
            slot_ns=begun - loaded,
        )

    def _bind(self, program: Program, plan: Plan) -> Steps[BoundRequest]:
        """Get memory and inputs; where others use the memory that it needs, wait for its turn."""
        while True:
            bound = yield from self._get_memory(program, plan)
            try:
                bound.load()
            except SnapshotChanged:
                bound.close()
            except BaseException:
                bound.close()
                raise
            else:
                return bound

    def _get_memory(self, program: Program, plan: Plan) -> Steps[BoundRequest]:
        executor, owner, turns = self._executor, self._owner, self._executor.memory_turns
        given = self._invocation.inputs, self._invocation.input_keys
        self._check_fits(program, plan)
        awaited = _Memory()
        try:
            while True:
                if turns.may_try(self, owner):
                    try:
                        return BoundRequest(executor, program, plan, *given, self._tracer, owner)
                    except SnapshotChanged:
                        continue
                    except OwnerLimitError:
                        if not executor.memory.in_use_of(owner.name):
                            raise
                        turns.wait(self, owner, values_needed(program, plan, given[0]), for_owner=True)
                    except (NoRoomError, OutOfMemory):
                        if not executor.memory.in_use_bytes:
                            raise
                        turns.wait(self, owner, values_needed(program, plan, given[0]), for_owner=False)
                else:
                    turns.wait_behind(self, owner, partial(values_needed, program, plan, given[0]))
                self._invocation.on_waiting(True)
                yield awaited
                self._invocation.on_waiting(False)
                self._invocation.cancellation.check()
        finally:
            awaited.taken = True
            turns.leave(self, owner)

    def _check_fits(self, program: Program, plan: Plan) -> None:
        """Raise ``NoRoomError`` or ``OwnerLimitError`` where a request needs more than there may be: it waits for nobody."""
        limit, of_owner = self._executor.memory.limit_bytes, self._owner.limit_bytes
        if plan.device_bytes > limit or (of_owner and plan.device_bytes > of_owner):
            needed = bytes_needed(program, plan, self._invocation.inputs)
            if needed > limit:
                raise NoRoomError(needed, 0, limit)
            if of_owner and needed > of_owner:
                raise OwnerLimitError(needed, 0, of_owner)

    def _until_slot(self, bound: BoundRequest) -> Steps[None]:
        """Wait until others leave a request the place to run. Its inputs are on their way meanwhile."""
        slots, priority, group = self._executor.slots, self._invocation.priority, self._invocation.group
        slot = _Slot(partial(slots.has_free, priority, group))
        self._invocation.on_waiting(True)
        while not slots.take(self, priority, group):
            yield slot
            self._invocation.cancellation.check()
            if all(transfer.done() for transfer in bound.transfers):
                bound.close_snapshot()
        slot.taken = True
        self._invocation.cancellation.check()  # who cancelled it before that has not told the device
        self._invocation.on_waiting(False)

    def _launch(self, program: Program, bound: BoundRequest) -> Steps[None]:
        while self._executor.load_gate.waiting and self._executor.load_gate.holds_back(monotonic()):
            yield NOTHING
            self._invocation.cancellation.check()
        started = perf_counter_ns()
        running = _Running(bound.run, started + program.run_ns if program.run_ns else 0)
        bound.run.start(bound.transfers, self._tracer, self._invocation.priority, self._invocation.group)
        device_time = self._executor.device_time
        device_time.start(bound.run)
        try:
            for transfer in bound.transfers:
                while not transfer.done():
                    yield transfer
            bound.close_snapshot()  # as early as can be: LMDB cannot reuse pages that a reader may see
            while not bound.run.done():
                yield running
                if self._invocation.cancellation.reason is not None:
                    bound.run.stop()
            program.run_ns = perf_counter_ns() - started
        except GeneratorExit:
            bound.run.stop()
            bound.run.wait()
            raise
        finally:
            self._device_ns = device_time.end(bound.run)

    def _read(
        self, program: Program, plan: Plan, bound: BoundRequest, downloads: list[DeviceDownload]
    ) -> dict[str, ReadableBuffer]:
        """Return every buffer that is stored or returned, by name; what is large arrives with ``downloads``."""
        contents: dict[str, ReadableBuffer] = {}
        for index, slot in enumerate(plan.slots):
            name = slot.spec.name
            if not slot.store and name not in self._invocation.return_buffers:
                continue
            if index in program.layout.downloaded:
                # Copied, so that the next request can have the run while the store writes.
                contents[name] = bytes(bound.run.downloads[program.layout.downloaded.index(index)])
            else:
                with nullcontext() if self._tracer is None else self._tracer.download(name, slot.spec.size_bytes):
                    stays = index in program.layout.kept
                    downloads.append(self._executor.device.download(bound.buffer(index), stays=stays))
                contents[name] = downloads[-1].view
        return contents

    def _outputs(self, contents: Mapping[str, ReadableBuffer]) -> Mapping[str, bytes]:
        return {name: bytes(contents[name]) for name in self._invocation.return_buffers}

    def _writes(self, plan: Plan, contents: Mapping[str, ReadableBuffer]) -> list[Write]:
        """Return what is to be stored."""
        return [
            Write(
                slot.key,
                [contents[slot.spec.name]],
                None if slot.whole else slot.spec.offset_bytes,
                create=slot.spec.name in self._invocation.inputs,
                account=self._invocation.group,
                form=slot.spec.form,
            )
            for slot in plan.slots
            if slot.store
        ]

    def _commit(self, writes: Sequence[Write], kept_reply: Write | None) -> Steps[Mapping[str, int]]:
        """Store what is to be stored; return the new versions by key."""
        if not writes:
            return {}
        self._invocation.on_commit()
        all_writes = writes if kept_reply is None else [*writes, kept_reply]
        commit = _Commit(self._executor.store.commit(all_writes), self._executor.on_commit)
        try:
            while not commit.done():
                yield commit
        except GeneratorExit:
            commit.wait()  # The store reads the contents until then.
            raise
        try:
            entries = commit.entries
        except KeyExistsError:
            raise RequestIdReusedError("there is a reply of this request_id already; nothing was changed") from None
        if kept_reply is not None:  # Its key may be that of a value too.
            first = entries[kept_reply.key].version - len(writes)
            return {write.key: first + index for index, write in enumerate(writes)}
        return {key: entry.version for key, entry in entries.items()}

    def _keep(self, slot: Slot, held: ValueHolding, versions: Mapping[str, int]) -> None:
        """Have what was stored of a slot on the device as its key's value, unless that is there already."""
        key = value_key(slot.key, slot.spec)
        if key in self._executor.memory:
            self._executor.memory.drop(held)
        else:
            held.version = versions[slot.key]
            self._executor.memory.rename(held, key, KEPT_INTERVAL)


def execute(executor: Executor, invocation: Invocation) -> Job[Result]:
    """Return a job that runs a request; its first poll begins it.

    A job that raises, ``KaasError`` or ``UnknownRequest``, leaves the store as it was.
    """
    return Job(Execution(executor, invocation).steps())


class _Slot:
    """A slot as something to wait for."""

    def __init__(self, has_free: Callable[[], bool]) -> None:
        self.done = has_free
        self.taken = False

    def wait(self) -> None:
        """Return at once: others have to go on first."""


class _Memory:
    """Memory as something to wait for: a request can only try again."""

    def __init__(self) -> None:
        self.taken = False

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        """Return at once: others have to go on first."""


class _Running:
    """A run as something to wait for."""

    def __init__(self, run: Run, expected_end_ns: int) -> None:
        self.expected_end_ns = expected_end_ns
        self.done, self.wait = run.done, run.wait


class _Commit:
    """A commit as something to wait for."""

    def __init__(self, future: Future[dict[str, Entry]], on_end: Callable[[], None]) -> None:
        self._future = future
        future.add_done_callback(lambda _: on_end())

    def done(self) -> bool:
        return self._future.done()

    def wait(self) -> None:
        """Return when the store has answered."""
        wait([self._future])

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The new entries by key. Raises ``KaasError``."""
        return self._future.result()


def _explain_missing(error: KeyNotFoundError, plan: Plan) -> KeyNotFoundError:
    """Say of an input that is not in the store what its caller can do."""
    names = " and ".join(shown(slot.spec.name) for slot in plan.slots if slot.load and slot.key == error.metadata["key"])
    advice = f"{error.message}, which buffer {names} is read from; store a value, or send the buffer's bytes with the call"
    return KeyNotFoundError(advice, dict(error.metadata))


def _check_sizes(plan: Plan, inputs: Mapping[str, ReadableBuffer]) -> None:
    for name, given in inputs.items():
        index = plan.slot_index.get(name)
        if index is None:
            continue
        size = plan.slots[index].spec.size_bytes
        if len(given) != size:
            raise InvalidRequestError.at(f'inputs["{name}"]', f"has {len(given)} bytes, but the buffer has {size}")
