"""A simulated GoIP gateway: what the *box* does, written from docs/protocol.md alone.

It shares no code with the server in this package, on purpose: two independent readings of the same document
find each other's mistakes. `bridge.sim.run.Simulator` is the way in, `goip-bridge sim` the command.
"""
