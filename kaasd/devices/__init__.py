"""Where kernels run: one protocol, a registry, and a folder a kind of device."""
