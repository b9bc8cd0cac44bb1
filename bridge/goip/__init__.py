"""The GoIP protocol: bytes and time in, bytes and events out. Standard library only, no clock, no socket."""
