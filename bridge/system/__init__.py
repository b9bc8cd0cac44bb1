"""The machine: clocks, UDP sockets, terminals."""
