"""Throw-away clusters for tests."""
