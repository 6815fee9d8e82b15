"""Benchmarks: ``tox -e bench -- [NAME…]``. Each module has a ``main()`` that measures, prints and returns rows."""
