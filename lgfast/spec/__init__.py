"""What values a configuration may hold; needs the standard library alone."""
