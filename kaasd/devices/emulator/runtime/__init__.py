"""What runs kernels: the device, its memory, loaded modules, launches and runs, and what is told of a fault."""
