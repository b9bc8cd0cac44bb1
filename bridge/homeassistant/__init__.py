"""Documents for Home Assistant, from settings alone."""
