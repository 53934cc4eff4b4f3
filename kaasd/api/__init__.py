"""The servicers. All that has to do with gRPC is here."""

import os

GRPC_EXPERIMENTS = "-event_engine_listener"
"""The thread that waits for gRPC's events reads the connections itself. By default another does, and wakes it: 60 to 100
microseconds more for a small call."""

# gRPC looks when it is imported, which happens below here only. One that it does not know costs a line in its log.
os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
