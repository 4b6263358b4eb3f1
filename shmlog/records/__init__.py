"""The record batch: records in, one buffer out, and back."""
