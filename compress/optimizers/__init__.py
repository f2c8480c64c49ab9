"""Optimizers on counted bits: a method is a frozen description, `run` takes its steps."""
