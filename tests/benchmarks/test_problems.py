"""What the benchmarks compute is what they say."""

from __future__ import annotations

import numpy as np

from benchmarks.problems import chain_of, chain_vector, dot_of, jacobi_steps, jacobi_system, unseen_dot_ptx


def test_dot_wraps_at_32_bits() -> None:
    a = np.array([2**31, 3], dtype=np.uint32)
    assert dot_of(a, np.array([2, 5], dtype=np.uint32)) == (15).to_bytes(4, "little")


def test_a_chain_is_a_power_that_does_not_vanish() -> None:
    w = chain_vector()
    assert chain_of(w, 800).tolist() == [pow(int(x), 801, 2**32) for x in w]
    assert np.all(chain_of(w, 800) % 2 == 1)


def test_jacobi_steps_approach_the_solution() -> None:
    matrix, rhs = jacobi_system()
    solution = np.linalg.solve(matrix.astype(np.float64), rhs)
    np.testing.assert_allclose(jacobi_steps(matrix, rhs, 3000), solution, rtol=0, atol=1e-5 * np.abs(solution).max())


def test_unseen_kernels_have_names_of_their_own() -> None:
    (ptx, suffix), (_, other) = unseen_dot_ptx(), unseen_dot_ptx()
    assert suffix != other
    assert f".entry prodKern{suffix}(".encode() in ptx and f".entry sumKern{suffix}(".encode() in ptx
