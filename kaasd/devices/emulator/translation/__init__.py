"""From the PTX of a library to what a device loads: a description of it, and the machine code of each kernel. Uses no device."""
