"""Trained policies and heuristics behind a URL, on Ray Serve."""
