"""Where rows live: the tables, the statements, the Store and one driver a database."""
