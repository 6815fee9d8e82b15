"""The driver for an SQLite file."""
