"""A real application at work: it indexes the sources of Python's own standard library.

Run it with ``python -m examples.demo`` from the repository's root; ``--help`` lists the options. Read in this order:

``tasks.py``    every task: a file is parsed by a sync job, a package is gathered by an async one, a schedule reports
``app.py``      the application factory: configuration, log, extensions
``messages.py`` the mails: a report, and a batch with one for each reader
``steps/``      what the demo does, one module a step; each enqueues, waits, and checks what came of it
``index.py``    the application's own database, which the jobs fill
``page.py``     the web page, and the dashboard at /tasks
``tally.py``    counts what happens to jobs, by listening to signals
``sources.py`` and ``parsing.py`` find the files and look into them; ``screen.py`` and ``summary.py`` show it all.
``mail_server.py`` takes the mails, with aiosmtpd: ``python3 dev.py demo`` installs it.
"""
