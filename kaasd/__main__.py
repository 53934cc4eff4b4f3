"""``kaasd`` and ``python -m kaasd``: run the daemon."""

from __future__ import annotations

import logging
import sys

import uvloop

from kaas_core.errors import KaasError
from kaasd.allocator import keep_freed_memory
from kaasd.api.listen import ListenError
from kaasd.app import StoreInUse, serve
from kaasd.config import parse_command_line
from kaasd.devices.base import DeviceUnavailable


def main() -> int:
    """Run the daemon with this process's command line; return its exit status."""
    keep_freed_memory()
    settings = parse_command_line(sys.argv[1:])
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        uvloop.run(serve(settings))
    except (KaasError, ListenError, DeviceUnavailable, StoreInUse, OSError) as error:
        print(f"kaasd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
