"""Consumer groups: who reads what, and how far each group has come. Sans-IO: requests and time in, state and records
out. docs/groups.md has the rules.
"""
