"""Describes what values a configuration may hold; imports only the standard library."""
