"""What runs in a worker: one process, one device, and the requests that it runs there."""
