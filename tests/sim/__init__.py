"""Deterministic simulation of whole clusters: the shipped `Node`, and a world made of one queue and one seed.

disk       files that lose what was not synced, tear and fail
world      clock, sockets, workers, the kernel, processes that are killed, stopped and started again
workload   clients that speak the real protocol
checkers   the invariants of the cluster, looked at after every event
history    what clients saw, looked at once all is over
life       one seed: options, faults, healing, liveness
planted    bugs of others, put back, to see that they are caught
"""
