"""What lets a run go on: what it is, whether its files are whole, and that nobody else is at it."""
