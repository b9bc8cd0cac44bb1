"""What the bridge does with what happened, row by row."""
