"""Reduced precision: what is done to the graph for each, and how near the result comes to the exact network on images."""
