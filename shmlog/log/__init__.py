"""The files of a partition; knows no ring."""
