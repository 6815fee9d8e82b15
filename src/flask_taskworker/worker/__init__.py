"""What only a worker does: claim, run, finish, schedule, stay alive."""
