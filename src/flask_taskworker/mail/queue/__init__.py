"""Queued mail: stored with its job, delivered by the worker."""
