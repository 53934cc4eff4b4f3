"""CUDA GPUs, through the driver API alone."""
