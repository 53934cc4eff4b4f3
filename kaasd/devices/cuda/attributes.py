"""What sets a launch apart from a plain one: for the driver, in a stream or as a node of a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cuda.bindings import driver

from kaas_core.request import Dim3, KernelSpec
from kaasd.devices.cuda.driver import Check, CudaError, check
from kaasd.devices.cuda.kernel import CudaKernel
from kaasd.request.device_checks import LaunchAttributes

_ID = driver.CUlaunchAttributeID
PROGRAMMATIC_EDGE = driver.CUgraphEdgeData()
"""From the kernel before to one that may begin before that has ended."""
PROGRAMMATIC_EDGE.type = driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC
PROGRAMMATIC_EDGE.from_port = driver.CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC


def _values(attributes: LaunchAttributes, kind: Any = driver.CUlaunchAttributeValue) -> list[tuple[Any, Any]]:
    """Return those that a node of a graph has as well, as values of a ``kind``: some releases have one of their own for nodes."""
    values = []
    if attributes.cluster is not None:
        value = kind()
        value.clusterDim.x, value.clusterDim.y, value.clusterDim.z = attributes.cluster
        values.append((_ID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value))
    if attributes.cooperative:
        value = kind()
        value.cooperative = 1
        values.append((_ID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value))
    return values


def launch_configuration(dimensions: Sequence[int], stream: Any, attributes: LaunchAttributes) -> Any:
    """Return the configuration of a launch: grid, block and dynamic shared memory, in seven numbers."""
    values = _values(attributes)
    if attributes.programmatic:
        value = driver.CUlaunchAttributeValue()
        value.programmaticStreamSerializationAllowed = 1
        values.append((_ID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value))
    configuration = driver.CUlaunchConfig()
    (
        configuration.gridDimX,
        configuration.gridDimY,
        configuration.gridDimZ,
        configuration.blockDimX,
        configuration.blockDimY,
        configuration.blockDimZ,
        configuration.sharedMemBytes,
    ) = dimensions
    configuration.hStream = stream
    given = []
    for identifier, value in values:
        attribute = driver.CUlaunchAttribute()
        attribute.id, attribute.value = identifier, value
        given.append(attribute)
    configuration.attrs, configuration.numAttrs = given, len(given)
    return configuration


def set_node_attributes(node: Any, attributes: LaunchAttributes) -> None:
    """Give a node of a graph what its launch has. Raises ``CudaError``."""
    for identifier, value in _values(attributes, driver.CUkernelNodeAttrValue):
        check(driver.cuGraphKernelNodeSetAttribute, node, driver.CUkernelNodeAttrID(int(identifier)), value)


def active_blocks(kernel: CudaKernel, launch: KernelSpec, multiprocessors: int, check: Check) -> int:
    """Return how many blocks of a launch run at once, in whole clusters. Raises as ``check``."""
    cluster: Dim3 | None = launch.cluster or kernel.attributes.cluster
    kernel.allow_dynamic_shared_memory(launch.shared_memory_bytes)
    if cluster is None:
        a_multiprocessor: int = check(
            driver.cuOccupancyMaxActiveBlocksPerMultiprocessor,
            kernel.function,
            math.prod(launch.block),
            launch.shared_memory_bytes,
        )
        return a_multiprocessor * multiprocessors
    kernel.allow_cluster(cluster)
    attributes = LaunchAttributes(cluster if kernel.attributes.cluster is None else None)
    dimensions = (*launch.grid, *launch.block, launch.shared_memory_bytes)
    configuration = launch_configuration(dimensions, driver.CUstream(0), attributes)
    try:
        clusters: int = check(driver.cuOccupancyMaxActiveClusters, kernel.function, configuration)
    except CudaError as error:
        if error.name == "CUDA_ERROR_INVALID_CLUSTER_SIZE":
            return 0
        raise
    return clusters * math.prod(cluster)
