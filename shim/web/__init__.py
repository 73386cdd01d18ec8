"""What surrounds a request: tokens, addresses, limits, logs, metrics, serving."""
