"""The hot window of a partition in shared memory: moves opaque batches."""
