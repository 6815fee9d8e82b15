"""From a Message to the bytes of a mail: fields are checked once, then written once."""
