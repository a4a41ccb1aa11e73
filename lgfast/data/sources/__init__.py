"""One module per dataset layout; each turns (root, split) into a Source."""
