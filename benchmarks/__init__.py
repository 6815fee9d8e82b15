"""Benchmarks: ``python3 dev.py bench [NAME…]``. Each module has a ``main()`` that measures, prints and returns rows."""
