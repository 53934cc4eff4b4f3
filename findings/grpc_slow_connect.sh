#!/usr/bin/env bash
# gRPC's least back-off between reconnects is the time that one attempt to connect may take.
#
# One would think: grpc.min_reconnect_backoff_ms bounds from below how long a channel waits between two attempts, as the comment beside
#   it says ("the minimum time between subsequent connection attempts"), so that a small one makes a channel find a restarted server sooner.
# Seen (grpcio 1.76.0): a server that accepts at once and sends its SETTINGS frame 0.5 s later, as a busy one may, is never reached
#   with 100 ms: "connection attempt timed out before receiving SETTINGS frame". With 10 s it is. How soon a channel tries again after
#   an attempt that was refused is a matter of grpc.initial_reconnect_backoff_ms alone, and is the same with both.
# So: kaas_client sets the first back-off to 0.1 s and leaves an attempt 10 s.
# Source: grpc/src/core/client_channel/subchannel.cc, "min_connect_timeout_".
#
# Needs Python with venv and pip on Linux; no privileges. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv > /dev/null
venv/bin/pip install --quiet --disable-pip-version-check grpcio==1.76.0 2> /dev/null

cat > slow.py <<'PYTHON'
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

LATE_S = 0.5


def echo(request, context):
    return request


handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
server = grpc.server(ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass


def late(client):
    """Pass on what the server says, but the first of it only after a while."""
    time.sleep(LATE_S)
    upstream = socket.create_connection(("127.0.0.1", port))
    threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
    pump(upstream, client)


def accept(listener):
    while True:
        client, _ = listener.accept()
        threading.Thread(target=late, args=(client,), daemon=True).start()


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=accept, args=(listener,), daemon=True).start()


def call(address, least_ms, **how):
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
    options += [("grpc.min_reconnect_backoff_ms", least_ms), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            return channel.unary_unary("/test.Echo/Echo")(b"hello", timeout=5, **how).decode()
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


slow = f"127.0.0.1:{listener.getsockname()[1]}"
short, long = call(slow, 100), call(slow, 10_000)
print("100 ms:", short)
print("10 s:", long)
assert short.startswith("UNAVAILABLE") and "timed out before receiving SETTINGS frame" in short
assert long == "hello"

# A port that refuses until a server comes: found equally soon.
for least_ms in (100, 10_000):
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    later = grpc.server(ThreadPoolExecutor(2))
    later.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))

    def start():
        later.add_insecure_port(f"127.0.0.1:{number}")
        later.start()

    threading.Timer(0.5, start).start()
    began = time.monotonic()
    answer = call(f"127.0.0.1:{number}", least_ms, wait_for_ready=True)
    took = time.monotonic() - began
    print(f"{least_ms} ms: a server that comes after 0.5 s answers {answer!r} within 3 s: {took < 3}")
    assert answer == "hello" and took < 3
    later.stop(None)
server.stop(None)
PYTHON
venv/bin/python slow.py
