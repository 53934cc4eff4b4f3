"""Converts the messages of the wire to what a client returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2

from kaas.v1 import admin_pb2, executor_pb2, kv_pb2, library_pb2, trace_pb2, types_pb2
from kaas_client import types
from kaas_client.builders import Request
from kaas_core import request as core
from kaas_core.protobuf import request_from_proto


@dataclass(frozen=True, slots=True)
class FunctionFields:
    """What the server says of a function; each kind of client makes its own callable of it."""

    name: str
    request: Request
    create_time: datetime
    damaged: bool = False
    """Only its name is known."""


def entry(message: kv_pb2.Entry) -> types.Entry:
    return types.Entry(
        message.key,
        message.size_bytes,
        message.version,
        _time(message.update_time),
        message.dtype,
        tuple(message.shape),
        message.fortran_order,
    )


def result(message: executor_pb2.SubmitResponse | executor_pb2.InvokeResponse) -> types.Result:
    timing = message.timing
    return types.Result(
        outputs=dict(message.outputs),
        versions=dict(message.versions),
        device=message.device,
        timing=types.Timing(
            queue_ns=timing.queue_ns,
            plan_ns=timing.plan_ns,
            load_ns=timing.load_ns,
            run_ns=timing.run_ns,
            commit_ns=timing.commit_ns,
            total_ns=timing.total_ns,
        ),
        printed=message.printed,
        trace=_trace(message.trace) if message.HasField("trace") else None,
        attempts=message.attempts or 1,
        outputs_dropped=message.outputs_dropped,
        group=message.group,
        placement=_enum_name(executor_pb2.Placement, message.placement, "PLACEMENT_"),
    )


def function(message: executor_pb2.Function) -> FunctionFields:
    return FunctionFields(message.name, Request.from_spec(request_from_proto(message.request)), _time(message.create_time))


def functions(message: executor_pb2.ListFunctionsResponse) -> list[FunctionFields]:
    """Return a page of functions in the order of their names, with those that are damaged."""
    nothing, never = Request.from_spec(core.Request(())), datetime.fromtimestamp(0, UTC)
    damaged = [FunctionFields(name, nothing, never, damaged=True) for name in message.damaged_names]
    return sorted([*map(function, message.functions), *damaged], key=attrgetter("name"))


def library(message: library_pb2.Library) -> types.Library:
    return types.Library(
        message.id,
        message.file_name,
        message.size_bytes,
        _library_kind(message.kind),
        _time(message.create_time),
        message.damaged,
    )


def inspection(message: library_pb2.InspectLibraryResponse) -> types.LibraryInspection:
    kernels = tuple(
        types.KernelInfo(
            name=kernel.name,
            parameter_size_bytes=tuple(kernel.parameter_size_bytes),
            static_shared_memory_bytes=kernel.static_shared_memory_bytes,
            max_threads_per_block=kernel.max_threads_per_block,
            parameter_alignment_bytes=tuple(kernel.parameter_alignment_bytes),
            parameter_names=tuple(kernel.parameter_names),
            required_block=_dim3(kernel.required_block) if kernel.HasField("required_block") else None,
            cluster=_dim3(kernel.cluster) if kernel.HasField("cluster") else None,
        )
        for kernel in message.kernels
    )
    return types.LibraryInspection(message.id, _library_kind(message.kind), kernels, message.device)


def server_info(message: admin_pb2.GetServerInfoResponse) -> types.ServerInfo:
    return types.ServerInfo(
        version=message.version,
        start_time=_time(message.start_time),
        addresses=tuple(message.addresses),
        max_message_bytes=message.max_message_bytes,
        store_limit_bytes=message.store_limit_bytes,
        durability=message.durability,
        draining=message.draining,
        store_id=message.store_id,
    )


def device(message: admin_pb2.Device) -> types.DeviceInfo:
    return types.DeviceInfo(
        name=message.name,
        model=message.model,
        compute_capability=message.compute_capability,
        memory_bytes=message.memory_bytes,
        memory_used_bytes=message.memory_used_bytes,
        state=_enum_name(admin_pb2.WorkerState, message.state, "WORKER_STATE_"),
        worker_pid=message.worker_pid,
        restarts=message.restarts,
        warp_size=message.warp_size,
        max_threads_per_block=message.max_threads_per_block,
        max_shared_memory_bytes=message.max_shared_memory_bytes,
        max_block=_dim3(message.max_block),
        max_grid=_dim3(message.max_grid),
        multiprocessors=message.multiprocessors,
        max_ptx_version=message.max_ptx_version,
        targets=tuple(message.targets),
    )


def stats(message: admin_pb2.GetStatsResponse) -> types.Stats:
    return types.Stats(
        uptime_ns=message.uptime.ToNanoseconds(),
        devices=tuple(_device_stats(d) for d in message.devices),
        store_keys=message.store_keys,
        store_used_bytes=message.store_used_bytes,
        store_limit_bytes=message.store_limit_bytes,
        functions=message.functions,
        failures_by_reason=dict(message.failures_by_reason),
        groups={name: _group_use(message.groups[name]) for name in sorted(message.groups)},
    )


def request(message: admin_pb2.RequestInfo) -> types.RequestInfo:
    return types.RequestInfo(
        id=message.id,
        function=message.function,
        device=message.device,
        state=_enum_name(admin_pb2.RequestState, message.state, "REQUEST_STATE_"),
        age_ns=message.age.ToNanoseconds(),
        input_bytes=message.input_bytes,
        group=message.group,
    )


def quarantined(message: admin_pb2.QuarantinedRequest) -> types.QuarantinedRequest:
    return types.QuarantinedRequest(
        id=message.id,
        workers=message.workers,
        last_fault=message.last_fault,
        last_time=_time(message.last_time),
        functions=tuple(message.functions),
    )


def group(message: admin_pb2.Group) -> types.Group:
    return types.Group(
        name=message.name,
        share=message.share,
        priority=message.priority,
        max_running=message.max_running,
        max_queued=message.max_queued,
        max_queued_bytes=message.max_queued_bytes,
        max_device_memory_bytes=message.max_device_memory_bytes,
        max_stored_bytes=message.max_stored_bytes,
        reserved_multiprocessors=message.reserved_multiprocessors,
        max_region_bytes=message.max_region_bytes,
        max_keys=message.max_keys,
    )


def group_info(message: admin_pb2.GetGroupResponse) -> types.GroupInfo:
    return types.GroupInfo(group(message.group), _group_use(message.use), message.fixed)


def compaction(message: admin_pb2.CompactStoreResponse) -> types.Compaction:
    return types.Compaction(
        file_before_bytes=message.file_before_bytes,
        file_after_bytes=message.file_after_bytes,
        disk_before_bytes=message.disk_before_bytes,
        disk_after_bytes=message.disk_after_bytes,
        only_end=message.only_end,
    )


def health(message: health_pb2.HealthCheckResponse) -> str:
    status = health_pb2.HealthCheckResponse.ServingStatus
    return status.Name(message.status) if message.status in status.values() else _unknown(message.status)


def _group_use(message: admin_pb2.GroupUse) -> types.GroupUse:
    return types.GroupUse(
        queued=message.queued,
        queued_bytes=message.queued_bytes,
        running=message.running,
        device_time_ns=message.device_time.ToNanoseconds(),
        started=message.started,
        resident=message.resident,
        queue_time_ns=message.queue_time.ToNanoseconds(),
        stored_bytes=message.stored_bytes,
        keys=message.keys,
        share_wanted=message.share_wanted,
        share_got=message.share_got,
    )


def _device_stats(message: admin_pb2.DeviceStats) -> types.DeviceStats:
    return types.DeviceStats(
        device=message.device,
        requests_succeeded=message.requests_succeeded,
        requests_failed=message.requests_failed,
        kernels_launched=message.kernels_launched,
        queued=message.queued,
        running=message.running,
        run_time_ns=message.run_time.ToNanoseconds(),
    )


def _trace(message: trace_pb2.Trace) -> types.Trace:
    kernels = [(kernel.name, _dim3(kernel.grid), _dim3(kernel.block)) for kernel in message.kernels]
    return types.Trace(
        spans=tuple(_span(span, message.streams, kernels) for span in message.spans),
        launches_left_out=message.launches_left_out,
        notes=tuple(message.notes),
    )


def _span(
    message: trace_pb2.Span, streams: Sequence[str], kernels: Sequence[tuple[str, tuple[int, int, int], tuple[int, int, int]]]
) -> types.Span:
    kind = _enum_name(trace_pb2.SpanKind, message.kind, "SPAN_KIND_")
    start_ns, duration_ns = message.start_ns, message.duration_ns
    if kind == "stage":
        return types.Span(kind, message.name, start_ns, duration_ns)
    if message.kind not in trace_pb2.SpanKind.values():  # Whether it has a stream is not known either.
        stream = streams[message.stream] if message.stream < len(streams) else ""
        return types.Span(kind, message.name, start_ns, duration_ns, stream)
    stream = streams[message.stream]
    if kind == "kernel":
        name, grid, block = kernels[message.kernel_index]
        return types.Span(kind, name, start_ns, duration_ns, stream, message.kernel_index, message.iteration, grid, block)
    return types.Span(kind, message.name, start_ns, duration_ns, stream, size_bytes=message.size_bytes)


def _time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


def _dim3(message: types_pb2.Dim3) -> tuple[int, int, int]:
    return message.x, message.y, message.z


def _library_kind(kind: library_pb2.LibraryKind) -> str:
    return _enum_name(library_pb2.LibraryKind, kind, "LIBRARY_KIND_")


def _enum_name(enum: Any, number: int, prefix: str) -> str:
    """Return the name of an enum's value as callers see it; a newer server may send values that have none here."""
    return enum.Name(number).removeprefix(prefix).lower() if number in enum.values() else _unknown(number)


def _unknown(number: int) -> str:
    return f"unknown ({number})"
