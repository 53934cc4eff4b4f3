"""What a worker tells the front of its device."""

from __future__ import annotations

from kaas.v1 import admin_pb2, types_pb2
from kaasd.request.device_checks import DeviceProperties
from kaasd.worker import main


def test_a_device_is_described() -> None:
    properties = DeviceProperties(
        "cuda:1",
        "a model",
        memory_bytes=2,
        compute_capability=(12, 1),
        multiprocessor_count=13,
        multiprocessor_unit=14,
        warp_size=3,
        max_threads_per_block=4,
        max_block=(5, 6, 7),
        max_grid=(8, 9, 10),
        max_shared_memory_bytes=11,
    )
    ready = main._ready(properties, 15)
    assert (ready.multiprocessor_unit, ready.memory_limit_bytes) == (14, 15)
    assert ready.device == admin_pb2.Device(
        name="cuda:1",
        model="a model",
        compute_capability="12.1",
        memory_bytes=2,
        warp_size=3,
        max_threads_per_block=4,
        max_block=types_pb2.Dim3(x=5, y=6, z=7),
        max_grid=types_pb2.Dim3(x=8, y=9, z=10),
        max_shared_memory_bytes=11,
        multiprocessors=13,
    )
