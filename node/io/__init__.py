"""Sockets, workers and the loop."""
