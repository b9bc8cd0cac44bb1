"""Processes: the supervisor, its worker, the embedded broker."""
