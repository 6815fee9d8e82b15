"""What needs no clock, no socket and no database: jobs, tasks, triggers, settings."""
