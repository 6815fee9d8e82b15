"""What a person sees and does, in a page or a command."""
