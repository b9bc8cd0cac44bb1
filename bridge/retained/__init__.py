"""What is true now, on retained topics."""
