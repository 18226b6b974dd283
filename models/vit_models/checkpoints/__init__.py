"""Readers of checkpoints, one file per public format. A file's content decides; nothing in it is ever executed."""
