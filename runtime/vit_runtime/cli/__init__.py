"""The commands. Only these modules import click."""
