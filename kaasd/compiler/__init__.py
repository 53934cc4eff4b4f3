"""Compiling beside a worker: a process of its own, and what it has made."""
