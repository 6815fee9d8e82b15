"""The SMTP dialogue, its connections and their pools."""
