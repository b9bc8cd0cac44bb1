"""Fuzzing what outsiders send: datagrams of gateways and payloads of commands (`python -m fuzz`, `make fuzz`)."""
