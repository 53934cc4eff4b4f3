"""Which kernels come to the heap of device code."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.heap import HEAP_FUNCTIONS, heap_users
from kaasd.libraries.image import read_image

TESTS = Path(__file__).parents[1]
DATA = TESTS / "conformance/data"
BUILT = ("heap.ptx", "heap.sm_90.cubin", "heap.fatbin", "heap_linked.sm_90.cubin")
USERS = {"takeKern": "malloc", "newKern": "malloc", "throughKern": "malloc", "giveKern": "free"}
MALLOC = ".extern .func (.param .b64 r) malloc (.param .b64 a);\n.extern .func free (.param .b64 a);\n"


@pytest.mark.parametrize("name", BUILT)
def test_what_nvcc_builds(name: str) -> None:
    assert heap_users(read_image((DATA / name).read_bytes()).units) == USERS


@pytest.mark.parametrize("name", ["variables.ptx", "variables.sm_90.cubin", "variables.fatbin"])
def test_a_library_without(name: str) -> None:
    assert not heap_users(read_image((DATA / name).read_bytes()).units)


def test_the_corpus() -> None:
    found = {path.name: dict(heap_users([path.read_bytes()])) for path in sorted((TESTS / "corpus").glob("*/*.ptx"))}
    assert {name: users for name, users in found.items() if users} == {"memory.ptx": {"heapKern": "malloc"}}


def users(functions: str) -> dict[str, str]:
    return dict(heap_users([f".version 8.0\n.target sm_75\n.address_size 64\n{MALLOC}{functions}\n".encode()]))


TAKE = "{ .param .b64 a; .param .b64 r; st.param.b64 [a], 8; call.uni (r), malloc, (a); }"
KERNELS = {
    "nothing": (".entry k() { ret; }", {}),
    "itself": (f".visible .entry k() {{ {TAKE} ret; }} .entry other() {{ ret; }}", {"k": "malloc"}),
    "two steps": (
        f".func g() {{ {TAKE} ret; }}\n.func f() {{ call g; ret; }}\n.entry k() {{ @%p call f; ret; }} .entry o() {{ ret; }}",
        {"k": "malloc"},
    ),
    "declared before": (
        f".func g();\n.entry k() {{ call g; ret; }}\n.entry o() {{ ret; }}\n.func g() {{ {TAKE} ret; }}",
        {"k": "malloc"},
    ),
    "an alias": (
        f".weak .func g();\n.func f() {{ {TAKE} ret; }}\n.entry k() {{ call g; ret; }} .entry o() {{ ret; }}\n.alias g, f;",
        {"k": "malloc"},
    ),
    "recursion": (f".func f() {{ call f; {TAKE} ret; }} .entry k() {{ call f; ret; }}", {"k": "malloc"}),
    "by a table": (
        f".func f() {{ {TAKE} ret; }}\n.global .u64 table[2] = {{0, f}};\n"
        ".entry k() { p: .callprototype _ (); call %rd1, p; ret; }\n"
        ".entry other() { ld.global.u64 %rd1, [table]; ret; }",
        {"k": "malloc"},
    ),
    "by an address that another kernel takes": (
        f".func f() {{ {TAKE} ret; }}\n.entry k() {{ p: .callprototype _ (); call %rd1, p; ret; }}\n"
        ".entry other() { mov.u64 %rd1, f; st.global.u64 [%rd2], %rd1; ret; }",
        {"k": "malloc"},
    ),
    "a pointer to malloc itself": (
        ".entry k() { mov.u64 %rd1, malloc; p: .callprototype (.param .b64 r) _ (.param .b64 a); call (r), %rd1, (a), p; ret; }",
        {"k": "malloc"},
    ),
    "a body without a statement": (f".entry e() {{ }}\n.entry k() {{ {TAKE} ret; }}\n.entry o() {{ }}", {"k": "malloc"}),
    "an attribute": (
        f".func .attribute(.unified(1, 2)) (.param .b64 x) f(.param .b64 y) {{ {TAKE} ret; }}"
        " .entry k() { call (x), f, (y); ret; }",
        {"k": "malloc"},
    ),
    "free alone": (".entry k() { call free, (a); ret; }", {"k": "free"}),
    "in a comment": ("// call malloc\n.entry k() { /* call free, (a); */ ret; }", {}),
    "a call of another": (".extern .func vprintf();\n.entry k() { call vprintf; ret; }", {}),
    "more braces than can be followed": (".entry k() { " + "{" * 20 + "a" + "}" * 20 + "; ret; }", {"k": "malloc"}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_ptx(name: str) -> None:
    functions, expected = KERNELS[name]
    assert users(functions) == expected


def test_a_function_of_the_modules_own() -> None:
    text = ".version 8.0\n.target sm_75\n.func malloc() { ret; }\n.entry k() { call malloc; ret; }"
    assert not heap_users([text.encode()])


LINKED = (DATA / "heap_linked.sm_90.cubin").read_bytes()


def test_a_cubin_that_does_not_tell_who_calls() -> None:
    """Its call graph has another name, so nobody is seen to call what is there."""
    without = LINKED.replace(b".nv.callgraph", b".nv.something")
    assert without != LINKED
    everyone = dict.fromkeys(("takeKern", "newKern", "throughKern", "giveKern", "printKern", "plainKern"), "malloc")
    assert heap_users([without]) == everyone


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(LINKED) - 4), st.integers(0, 2**32 - 1))
def test_damaged_machine_code_is_read_or_refused(place: int, word: int) -> None:
    damaged = bytearray(LINKED)
    struct.pack_into("<I", damaged, place, word)
    try:
        found = heap_users(read_image(bytes(damaged)).units)
    except UnsupportedLibrary:
        return
    assert set(found.values()) <= set(HEAP_FUNCTIONS)
