"""A run on a GPU: its launches go into a stream one by one at first, and as a CUDA graph once they come again.

A graph that one run launches often goes into the stream piece by piece, the next ones as the first end: so the run can be stopped
in between, and a long one does not fill the driver's queue, which would hold up who puts it there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import perf_counter_ns
from typing import Any

from cuda.bindings import driver

from kaasd.devices.base import DeviceLost, KernelFault, Launch, OutOfMemory, Stopped, Transfer, buffer_names, undone_on_failure
from kaasd.devices.cuda.buffers import CudaTransfer, Word
from kaasd.devices.cuda.context import CudaContext, Lane, LaneKind
from kaasd.devices.cuda.driver import CudaError, check
from kaasd.devices.cuda.graph import CallRefused, CudaGraph, split_iterations
from kaasd.devices.cuda.kernel import CudaKernel
from kaasd.devices.cuda.launch import MARKED_LAUNCHES, HostCall, KernelCall, WrapperFailed, call_of, faulted_launch, update_call
from kaasd.devices.cuda.moves import TIMED, Moved, Moves
from kaasd.devices.cuda.textures import ArrayCopy, RunTextures
from kaasd.devices.cuda.tracer import CudaTracer, stream_of
from kaasd.devices.cuda.wrapper import HostFunction
from kaasd.devices.trace import Tracer

PLAIN_STARTS = 1
"""Runs before there is a graph. On an H100 building one costs 6 microseconds a launch, and each run of it saves 3 against plain
launches: a graph pays for itself with the third run, and a run that never comes again needs none."""
_MIN_REPEATS = 3
"""A graph that one run launches so often pays for itself in that run."""
MOST_PIECES = 4
"""Launches of a graph in the stream, of one that is launched more often: the one that runs and three ahead. One takes 0.4 ms at
least, as kernels take 1.5 microseconds and more: the stream runs dry only where the worker is held up for a millisecond."""
_POLLS_A_QUERY = 64
"""Reading the flag costs 0.1 microseconds, asking the driver 2; but a kernel that faults never sets the flag."""


class CudaRun:
    """One chain of launches, with the small copies before and behind it; see ``Run``."""

    printed = ""
    """The driver writes what device code prints to this process's standard output, which does not tell whose text it is."""

    def __init__(
        self,
        context: CudaContext,
        mover: CudaKernel,
        arrived: Word,
        launches: Sequence[Launch],
        iterations: int,
        moved: Moved,
        plain_starts: int | None,
        forget: Callable[[CudaRun], None],
    ) -> None:
        """``mover`` is ``moveKern``, ``arrived`` a zeroed word for it; ``plain_starts`` None never makes a graph.

        When it closes it is given to ``forget``. Raises ``KernelFault``, ``OutOfMemory``.
        """
        if any(isinstance(launch.kernel, HostFunction) for launch in launches):
            plain_starts = None  # a graph cannot hold what host code does
        self._context = context
        self._launches = launches
        self._single, self._inside, self._repeats = split_iterations(len(launches), iterations)
        self._plain_starts = 0 if self._repeats >= _MIN_REPEATS and plain_starts is not None else plain_starts
        self._all_in_graph = self._single == 0 and self._repeats == 1
        self._starts = 0
        self._graphs: dict[LaneKind, CudaGraph] = {}
        """Most runs have one."""
        self._graph: CudaGraph | None = None
        """That of the last start."""
        self._lane: Lane | None = None
        self._failure: Exception | None = None
        self._enqueued = 0
        self._polls = 0
        self._traced = False
        self._left = 0
        """Launches of the graph that are not in the stream yet."""
        self._in_stream = 0
        """Those that are, and are not known to have ended."""
        self._marks: deque[Any] = deque()
        """Events behind these, as far as another launch waits for their end, in order."""
        self._is_stopping = False
        self._refused: Exception | None = None
        """Why nothing more could go into the stream."""
        with undone_on_failure() as undo:
            undo.callback(arrived.close)
            undo.callback(forget, self)
            memory = context.pinned.take(moved.host_bytes)
            undo.callback(memory.close)
            self._moves = moves = Moves(mover, moved, memory, arrived)
            self._flag, self._times, self.uploads, self.downloads = moves.flag, moves.times, moves.uploads, moves.downloads
            self._textures = RunTextures(launches, context)
            undo.callback(self._textures.close)
            self._calls = [self._call_of(index, launch) for index, launch in enumerate(launches)]
            undo.callback(self._drop_graphs)
        self._undo = undo

    def update(self, launches: Sequence[Launch]) -> None:
        """Run these launches from now on, which differ from those before in their buffers only."""
        self._launches = launches
        changed = [call for call, launch in zip(self._calls, launches, strict=True) if update_call(call, launch)]
        if self._textures.update(launches):
            self._drop_graphs()
        try:
            for graph in self._graphs.values():
                for call in changed:
                    if isinstance(call, KernelCall):
                        graph.update(call)
        except CudaError:
            self._drop_graphs()  # the next start builds another, and tells what is wrong

    def warm(self) -> None:
        """Build the graph. Raises ``KernelFault``, ``OutOfMemory`` where a launch is refused."""
        if not self._graphs and self._plain_starts is not None:
            kind = self._context.lane_kind()
            with undone_on_failure() as undo:
                graph = self._build_graph(kind)
                undo.callback(graph.close)
                self._upload(graph, kind)
            self._graphs[kind] = graph

    def _upload(self, graph: CudaGraph, kind: LaneKind) -> None:
        lane = self._context.take_lane(kind)
        try:
            graph.upload(lane.stream)
            self._context.check(driver.cuStreamSynchronize, lane.stream)
        except CudaError as refused:
            raise self._refusal(0, refused) from refused
        finally:
            self._context.give_lane(lane)

    def start(
        self, after: Iterable[Transfer] = (), tracer: Tracer[Any] | None = None, priority: int = 0, group: str = ""
    ) -> None:
        """Begin to run on a stream of its own.

        Raises ``KernelFault``, ``OutOfMemory`` where a launch is refused, ``DeviceLost``.
        """
        self._context.raise_if_lost()
        self._traced = tracer is not None
        kind = self._context.lane_kind(priority, group)
        self._graph = self._graphs.get(kind)
        if self._graph is None and not self._traced and self._plain_starts is not None and self._starts >= self._plain_starts:
            self._graph = self._graphs[kind] = self._build_graph(kind)
        self._starts += 1
        self._failure = None
        self._flag.value = 0
        self._times[:] = [0 if TIMED else perf_counter_ns(), 0]
        self._enqueued = self._polls = self._left = self._in_stream = 0
        self._is_stopping, self._refused = False, None
        self._lane = lane = self._context.take_lane(kind)
        self._context.run_begins()
        lane.reset()
        try:
            for transfer in after:
                assert isinstance(transfer, CudaTransfer)
                transfer.precede(lane.stream)
            if tracer is None:
                self._enqueue(lane)
            else:
                self._enqueue_traced(lane, tracer)
        except CudaError as refused:
            self._left = 0
            refusal = self._refusal(self._enqueued % max(1, len(self._calls)), refused)
            self.wait()
            self.done()  # an earlier launch's fault comes back from any later call
            raise refusal from refused
        except BaseException:
            self._left = 0
            self.wait()
            raise

    def _enqueue(self, lane: Lane) -> None:
        """Put everything into the lane's stream. Raises ``CudaError``."""
        if self._graph is not None and self._all_in_graph:
            self._graph.launch(lane.stream)
            return
        for move in self._moves.before:
            move.enqueue(lane.stream)
        for copy in self._textures.first:
            copy.enqueue(lane.stream)
        if self._graph is None:
            self._enqueue_plain(lane, self._single + self._inside * self._repeats)
            self._enqueue_behind(lane)
        else:
            self._enqueue_plain(lane, self._single)
            self._left = self._repeats
            self._enqueue_pieces(lane, self._graph)

    def _enqueue_pieces(self, lane: Lane, graph: CudaGraph) -> None:
        """Put as many launches of the graph into the stream as are to be there, and with the last what comes behind.

        Raises ``CudaError``, ``OutOfMemory``, ``DeviceLost``.
        """
        while self._left and self._in_stream < MOST_PIECES:
            graph.launch(lane.stream)
            self._left -= 1
            self._in_stream += 1
            if self._left >= MOST_PIECES:
                self._marks.append(self._context.take_event())
                check(driver.cuEventRecord, self._marks[-1], lane.stream)
            elif not self._left:
                self._enqueue_behind(lane)

    def _enqueue_behind(self, lane: Lane) -> None:
        for call in self._moves.behind:
            call.enqueue(lane.stream)

    def _go_on(self, lane: Lane) -> None:
        """Put more launches into the stream in place of those that have ended."""
        try:
            while self._marks:
                if not self._context.has_ended(driver.cuEventQuery, self._marks[0]):
                    break
                self._context.raise_if_lost()
                self._context.give_event(self._marks.popleft())
                self._in_stream -= 1
            if self._graph is not None and not self._is_stopping:
                self._enqueue_pieces(lane, self._graph)
        except CudaError as refused:
            self._left, self._refused = 0, self._refusal(0, refused)
        except (OutOfMemory, DeviceLost) as refused:
            self._left, self._refused = 0, refused

    def _enqueue_plain(self, lane: Lane, iterations: int) -> None:
        for _ in range(iterations):
            for call in self._calls:
                if 0 < self._enqueued <= MARKED_LAUNCHES:
                    lane.mark(self._enqueued)
                call.enqueue(lane.stream)
                self._enqueued += 1

    def _enqueue_traced(self, lane: Lane, tracer: Tracer[Any]) -> None:
        """As ``_enqueue``, every move and launch by itself and noted. Raises ``CudaError``."""
        assert isinstance(tracer, CudaTracer)
        begun_ns = perf_counter_ns()
        tracer.precede(lane.stream)
        stream, names = stream_of(lane.stream, "kernels"), buffer_names(self._launches)
        for reset in self._moves.variables():
            reset.enqueue(lane.stream)
        with tracer.working(stream):
            for kind, buffer, move in self._moves.singly_before():
                with tracer.span(kind, stream, name=names[buffer], size_bytes=buffer.size_bytes):
                    move.enqueue(lane.stream)
            for copy in self._textures.first:
                copy.enqueue(lane.stream)
            for iteration in range(self._single + self._inside * self._repeats):
                for index, call in enumerate(self._calls):
                    if 0 < self._enqueued <= MARKED_LAUNCHES:
                        lane.mark(self._enqueued)
                    with tracer.launch(stream, index, iteration):
                        call.enqueue(lane.stream)
                    self._enqueued += 1
            for kind, buffer, move in self._moves.singly_behind():
                with tracer.span(kind, stream, name=names[buffer], size_bytes=buffer.size_bytes):
                    move.enqueue(lane.stream)
        for signal in self._moves.end():
            signal.enqueue(lane.stream)
        tracer.stage("launch", begun_ns)

    def done(self) -> bool:
        """Whether it has ended. Raises ``KernelFault`` where a kernel faulted."""
        if self._lane is not None and not self._flag.value and not self._context.lost:
            if self._left:
                self._go_on(self._lane)
            self._polls += 1
            if self._polls % _POLLS_A_QUERY and not self._is_stopping:
                return False
            if self._left and not self._is_stopping:
                return False
            with suppress(CudaError):  # which comes back from ``_end``
                if not self._context.has_ended(driver.cuStreamQuery, self._lane.stream):
                    return False
        self._end()
        if self._failure is not None:
            raise self._failure
        return True

    def wait(self) -> None:
        """Return when it has ended. It spins, with the GIL released: a blocking wait takes 20 microseconds longer."""
        if self._lane is not None:
            while self._left and not self._is_stopping and self._context.wait_for(driver.cuEventSynchronize, self._marks[0]):
                self._go_on(self._lane)
            self._context.wait_for(driver.cuStreamSynchronize, self._lane.stream)  # a fault comes back from ``_end``
            self._end()

    @property
    def times_ns(self) -> tuple[int, int]:
        """When it began and ended, as ``Run`` says, by the GPU's clock."""
        begun_ns, ended_ns = self._times
        return begun_ns, ended_ns

    def stop(self) -> None:
        """Put no more launches into the stream; those that are there end. Idempotent."""
        self._is_stopping = self._left > 0

    def _end(self) -> None:
        """Take note of the end."""
        lane, self._lane = self._lane, None
        if lane is None:
            return
        if not self._flag.value:
            try:
                if not self._context.lost:
                    with self._context.questions:
                        check(driver.cuStreamSynchronize, lane.stream)
            except CudaError as error:
                self._context.note_fault(error)
            fault = self._context.fault
            refused = self._refused or (Stopped() if self._left else None)
            self._failure = refused if fault is None else self._fault(lane, fault)
        elif not TIMED:
            self._times[1] = perf_counter_ns()
        self._left = 0
        while self._marks:
            self._context.give_event(self._marks.popleft())
        self._context.run_ends()
        self._context.give_lane(lane)

    def _fault(self, lane: Lane, error: CudaError) -> KernelFault:
        suspects = self._context.note_fault(error)
        launches = len(self._launches)
        by_itself = self._graph is None or self._traced
        index = faulted_launch(lane.progress, self._enqueued, launches) if by_itself or launches == 1 else -1
        who = self._launches[index].kernel.attributes.name if index >= 0 else "a kernel"
        return KernelFault(error.name, index, f"{who} faulted: {error.text}", device_lost=True, suspects=suspects)

    def _refusal(self, index: int, refused: CudaError) -> Exception:
        if refused.is_fault:
            self._context.note_fault(refused)
            return KernelFault(refused.name, -1, f"a kernel faulted: {refused.text}", device_lost=True)
        if isinstance(refused, WrapperFailed):
            return KernelFault(refused.name, index, str(refused))
        message = f"{self._launches[index].kernel.attributes.name} could not be launched: {refused}"
        return OutOfMemory(message) if refused.is_out_of_memory else KernelFault(refused.name, index, message)

    def _call_of(self, index: int, launch: Launch) -> KernelCall | HostCall:
        try:
            return call_of(launch, self._textures)
        except CudaError as refused:
            raise self._refusal(index, refused) from refused

    def _build_graph(self, kind: LaneKind) -> CudaGraph:
        calls = [call for call in self._calls if isinstance(call, KernelCall)] * self._inside
        before: list[KernelCall | ArrayCopy] = [*self._moves.before, *self._textures.first] if self._all_in_graph else []
        behind = self._moves.behind if self._all_in_graph else []
        try:
            return CudaGraph([*before, *calls, *behind], self._context.release, kind)
        except CallRefused as refused:
            raise self._refusal((refused.index - len(before)) % max(1, len(self._calls)), refused.error) from refused
        except CudaError as error:
            raise self._refusal(0, error) from error

    def _drop_graphs(self) -> None:
        self._graph = None
        while self._graphs:
            self._graphs.popitem()[1].close()

    def close(self) -> None:
        """Free what it took. Idempotent."""
        self.wait()
        self._undo.close()
