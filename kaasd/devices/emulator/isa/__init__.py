"""The instruction set: the table of instructions, and for each family of them what emits their code."""
