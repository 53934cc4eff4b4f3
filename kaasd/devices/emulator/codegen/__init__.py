"""From a resolved kernel to LLVM and machine code. Knows nothing of single instructions."""
