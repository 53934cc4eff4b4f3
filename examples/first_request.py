"""A first request: the dot product of two vectors. Needs a running daemon; run it from the root of the repository."""

import numpy as np

from kaas_client import Client, Kernel, Request, inp, out, tmp, u64

a = b = np.arange(1024, dtype="u4")
with Client() as kaas:
    lib = kaas.upload("examples/kernels/dot.ptx")
    product = Kernel(lib, "prodKern", grid=1, block=1024, args=[u64(1024), inp("a", 4096), inp("b", 4096), tmp("p", 4096)])
    total = Kernel(lib, "sumKern", grid=1, block=512, args=[inp("p"), out("c", 4)])
    dot = kaas.register("dot", Request([product, total]))
    print(dot(a=a, b=b).array("c", "u4"), "NumPy says", np.sum(a * b, dtype="u4"))
