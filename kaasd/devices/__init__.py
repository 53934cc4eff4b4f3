"""Where kernels run: one protocol, a registry, and a package per kind of device."""
