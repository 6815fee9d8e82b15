"""The driver for PostgreSQL."""
