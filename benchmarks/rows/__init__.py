"""The rows of the benchmark, one file for each thing that is measured."""
