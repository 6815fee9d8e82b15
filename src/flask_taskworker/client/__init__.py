"""What every process does with jobs: enqueue, look up, wait, cancel."""
