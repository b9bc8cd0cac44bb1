"""Measurements of the bridge: `python -m benchmarks` runs them all, `python -m benchmarks inbound` one.

The bridge runs as the user runs it, in a process of its own on one core; load, broker and subscribers share another.
Rates depend on the machine and on who else uses it: compare the rows of one table. A wrong result (a lost, doubled or
refused message) ends with exit code 1; slowness never does.
"""
