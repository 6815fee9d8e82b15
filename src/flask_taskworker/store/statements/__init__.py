"""The SQL texts, one function a statement."""
