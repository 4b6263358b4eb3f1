"""Metadata as records, the immutable image they add up to, and who decides about it."""
