"""CUDA graphs: a chain of kernel launches that goes into a stream at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cuda.bindings import driver

from kaasd.devices.base import undone_on_failure
from kaasd.devices.cuda.attributes import PROGRAMMATIC_EDGE, set_node_attributes
from kaasd.devices.cuda.context import LaneKind
from kaasd.devices.cuda.driver import CudaError, Release, check
from kaasd.devices.cuda.launch import KernelCall
from kaasd.devices.cuda.textures import ArrayCopy

MAX_REPEATED_LAUNCHES = 256
"""In one graph, where iterations could make it longer. Building costs 6 microseconds a launch on an H100; launched 12 times, a
graph of 250 took as long as one of 3000 launched once (9.61 and 9.62 ms), one of 100 was 0.6 % slower."""


PRIORITY = driver.CUkernelNodeAttrID.CU_LAUNCH_ATTRIBUTE_PRIORITY


class CallRefused(Exception):
    """The driver refused one of the calls."""

    def __init__(self, index: int, error: CudaError) -> None:
        super().__init__(index, error)
        self.index = index
        self.error = error


class CudaGraph:
    """A chain of calls, ready to be launched."""

    def __init__(self, calls: Sequence[KernelCall | ArrayCopy], release: Release, kind: LaneKind) -> None:
        """Of which kind its kernels are, each node says itself: for a graph its stream's does not count.

        Raises ``CallRefused``, ``CudaError``.
        """
        self._partition = kind.partition
        value = driver.CUkernelNodeAttrValue()
        value.priority = kind.level
        self._nodes: dict[KernelCall, list[Any]] = {}
        with undone_on_failure() as undo:
            graph = check(driver.cuGraphCreate, 0)
            undo.callback(release, driver.cuGraphDestroy, graph)  # the nodes are needed for as long as they may be changed
            before: list[Any] = []
            behind_kernel = False
            """Whether it is a kernel that a launch which may begin early comes behind: no copy has an edge for that."""
            for index, call in enumerate(calls):
                try:
                    for part in _parts(call):
                        if isinstance(part, ArrayCopy):
                            before, behind_kernel = [part.add_to(graph, before)], False
                            continue
                        early = part.attributes.programmatic and behind_kernel
                        ahead = [] if early else before
                        node = check(driver.cuGraphAddKernelNode, graph, ahead, len(ahead), part.node_parameters(kind.partition))
                        set_node_attributes(node, part.attributes)
                        if early:
                            check(driver.cuGraphAddDependencies, graph, before, [node], [PROGRAMMATIC_EDGE], 1)
                        self._nodes.setdefault(part, []).append(node)
                        before, behind_kernel = [node], True
                        if kind.level:
                            check(driver.cuGraphKernelNodeSetAttribute, node, PRIORITY, value)
                except CudaError as error:
                    raise CallRefused(index, error) from error
            self._executable = check(driver.cuGraphInstantiate, graph, 0)
            undo.callback(release, driver.cuGraphExecDestroy, self._executable)
        self._undo = undo

    def launch(self, stream: Any) -> None:
        """Put it into a stream. Raises ``CudaError``."""
        check(driver.cuGraphLaunch, self._executable, stream)

    def upload(self, stream: Any) -> None:
        """Bring it to the device now, which the first launch would do otherwise. Raises ``CudaError``."""
        check(driver.cuGraphUpload, self._executable, stream)

    def update(self, call: KernelCall) -> None:
        """Take over a call's new parameters, for launches to come. 2 microseconds for each time that the call is in it.

        Copies of arrays stay as they are: the driver changes none of several dimensions in a graph that is made.
        """
        for node in self._nodes.get(call, ()):
            check(driver.cuGraphExecKernelNodeSetParams, self._executable, node, call.node_parameters(self._partition))

    def close(self) -> None:
        """Free it. Idempotent."""
        self._undo.close()


def split_iterations(launches: int, iterations: int) -> tuple[int, int, int]:
    """Return how many iterations run singly, how many are in a graph, and how often that is launched.

    All are in one graph where they fit, or where one iteration alone is too long to be repeated within it.
    """
    most = max(1, MAX_REPEATED_LAUNCHES // max(1, launches))
    if iterations <= most:
        return 0, iterations, 1
    inside = min(range(most, max(0, most // 2 - 1), -1), key=lambda n: iterations % n)
    return iterations % inside, inside, iterations // inside


def _parts(call: KernelCall | ArrayCopy) -> Iterator[KernelCall | ArrayCopy]:
    """Yield what goes into a graph for a call, in order."""
    if isinstance(call, KernelCall):
        yield from call.before
        yield call
        yield from call.behind
    else:
        yield call
