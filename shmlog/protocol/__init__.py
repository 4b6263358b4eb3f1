"""Messages as values; knows no socket and no file."""
