"""One event loop, one choke point."""
