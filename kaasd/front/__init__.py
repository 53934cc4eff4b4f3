"""What runs in the front: it picks a worker for each call, keeps the workers alive, and knows functions and deadlines."""
