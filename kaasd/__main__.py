"""``kaasd`` and ``python -m kaasd``: run the daemon."""

from __future__ import annotations

import sys

import uvloop

from kaas_core.errors import KaasError
from kaasd.api.listen import ListenError
from kaasd.api.tls import TlsError
from kaasd.app import StoreInUse, serve
from kaasd.config import parse_command_line
from kaasd.devices.base import DeviceUnavailable
from kaasd.devices.code_directory import CodeDirectoryError
from kaasd.process import keep_freed_memory, start_log

SWITCH_INTERVAL_S = 1e-3
"""While a thread checks a large request, the event loop gets its turn after this long. With 5 ms, a call beside it took 30 ms."""


def main() -> int:
    """Run the daemon with this process's command line; return its exit status."""
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = parse_command_line(sys.argv[1:])
    start_log(settings.log_level)
    try:
        uvloop.run(serve(settings))
    except (KaasError, ListenError, TlsError, DeviceUnavailable, CodeDirectoryError, StoreInUse, OSError) as error:
        print(f"kaasd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
