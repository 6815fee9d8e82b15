"""What users of the peers write: one module each, as the first pages of their documentation show it."""
