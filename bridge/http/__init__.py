"""The HTTP listener: status page, health, metrics."""
