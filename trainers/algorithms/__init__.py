"""The learning algorithms, one file per family."""
