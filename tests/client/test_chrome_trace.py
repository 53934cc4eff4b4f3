"""A trace in the Trace Event Format."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kaas_client.chrome_trace import chrome_trace, to_json
from kaas_client.types import Result, Span, Timing, Trace

TIMING = Timing(queue_ns=0, plan_ns=0, load_ns=0, run_ns=0, commit_ns=0, total_ns=20_000)
SHAPE: dict[str, Any] = {"grid": (4, 1, 1), "block": (32, 2, 1)}
SPANS = (
    Span("kernel", "mul", 6_000, 1_500, "stream 7", kernel_index=0, iteration=0, **SHAPE),
    Span("kernel", "sum", 7_501, 10, "stream 7", kernel_index=1, iteration=0, **SHAPE),
    Span("kernel", "mul", 8_000, 1_000, "stream 7", kernel_index=0, iteration=1, **SHAPE),
    Span("zero", "p", 5_000, 500, "stream 7", size_bytes=16),
    Span("copy_to_device", "a", 3_000, 1_000, "stream 5", size_bytes=1 << 20),
    Span("copy_to_host", "c", 12_000, 900, "stream 6", size_bytes=4),
    Span("stage", "run", 4_000, 8_000),
    Span("stage", "launch", 4_000, 3_000),
    Span("stage", "gpu", 5_000, 5_000),
    Span("stage", "request", 0, 20_000),
)
RESULT = Result({}, {}, "cuda:1", TIMING, trace=Trace(SPANS, launches_left_out=2, notes=("mind the gap",)))


def rows() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the spans of every row, by the names of its group and of itself, in the order in which they are to be shown."""
    events = chrome_trace(RESULT)["traceEvents"]

    def labels(what: str, value: str) -> dict[tuple[int, int], Any]:
        return {(e["pid"], e["tid"]): e["args"][value] for e in events if (e["ph"], e["name"]) == ("M", what)}

    groups, names = labels("process_name", "name"), labels("thread_name", "name")
    group_places, places = labels("process_sort_index", "sort_index"), labels("thread_sort_index", "sort_index")
    assert groups.keys() == group_places.keys()
    in_order = sorted(places, key=lambda row: (group_places[row[0], 0], places[row]))
    assert sorted(in_order) == sorted({(e["pid"], e["tid"]) for e in events if e["ph"] == "X"})
    return {
        (groups[pid, 0], names[pid, tid]): [e for e in events if (e["ph"], e["pid"], e["tid"]) == ("X", pid, tid)]
        for pid, tid in in_order
    }


def test_a_row_for_the_stages_for_each_stream_and_for_each_kernel() -> None:
    assert {row: [event["name"] for event in events] for row, events in rows().items()} == {
        ("kaasd", "request"): ["request", "run"],
        ("kaasd", "launch"): ["launch"],
        ("kaasd", "gpu"): ["gpu"],
        ("cuda:1: streams", "stream 5"): ["copy a to the device"],
        ("cuda:1: streams", "stream 7"): ["zero p", "mul", "sum", "mul"],
        ("cuda:1: streams", "stream 6"): ["copy c to the host"],
        ("cuda:1: kernels", "mul"): ["mul", "mul"],
        ("cuda:1: kernels", "sum"): ["sum"],
    }
    assert [group for group, _ in rows()] == ["kaasd"] * 3 + ["cuda:1: streams"] * 3 + ["cuda:1: kernels"] * 2


def test_times_are_in_microseconds_and_details_are_kept() -> None:
    zero, _, total, again = rows()["cuda:1: streams", "stream 7"]
    assert (zero["ts"], zero["dur"], zero["cat"], zero["args"]) == (5.0, 0.5, "zero", {"size_bytes": 16})
    assert (total["ts"], total["dur"]) == (7.501, 0.01)
    assert again["args"] == {"kernel_index": 0, "iteration": 1, "grid": (4, 1, 1), "block": (32, 2, 1)}


def test_no_nanosecond_is_lost_to_a_reader_that_cuts_off() -> None:
    spans = tuple(Span("stage", "launch", ns, ns + 1) for ns in range(0, 300_000, 7))
    events = json.loads(to_json(replace(RESULT, trace=Trace(spans, 0, ()))))["traceEvents"]
    found = [(int(event["ts"] * 1000.0), int(event["dur"] * 1000.0)) for event in events if event["ph"] == "X"]
    assert found == [(span.start_ns, span.duration_ns) for span in spans]


def test_a_file_is_json_and_tells_what_it_lacks() -> None:
    trace = json.loads(to_json(RESULT))
    assert trace["otherData"] == {"device": "cuda:1", "launches_left_out": 2, "notes": ["mind the gap"]}
    assert trace["displayTimeUnit"] == "ns"
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X"}


def test_a_result_without_a_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="none was requested"):
        chrome_trace(Result({}, {}, "cuda:1", TIMING))
