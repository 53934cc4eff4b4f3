"""Python imports this at the start of every process that has this folder on its path: what tests run is measured."""

import os

if "COVERAGE_PROCESS_START" in os.environ:
    import coverage

    coverage.process_startup()
