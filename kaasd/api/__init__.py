"""The servicers. All that has to do with gRPC is here."""

import os


def grpc_experiments() -> str:
    """Return the environment's ``GRPC_EXPERIMENTS``, or kaasd's own choice.

    That is: the thread that waits for gRPC's events reads the connections itself. By default another does, and wakes it: 60 to
    100 microseconds more for a small call.
    """
    return os.environ.get("GRPC_EXPERIMENTS", "-event_engine_listener")


# gRPC looks when it is imported, which happens below here only. One that it does not know costs a line in its log.
os.environ["GRPC_EXPERIMENTS"] = grpc_experiments()
# Else each failed handshake of TLS costs a line in the daemon's log, whoever makes it.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
