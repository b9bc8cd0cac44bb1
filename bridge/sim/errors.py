"""The one error that is meant for whoever started the simulator."""


class SimulatorError(Exception):
    """The simulator cannot start or go on; the message says what to do about it."""
