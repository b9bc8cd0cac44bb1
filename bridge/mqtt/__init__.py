"""The connection to the broker, and what waits for it."""
