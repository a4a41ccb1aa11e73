"""`python -m lgfast.doctor` finds what is slow, missing or wrong here, and names the command that fixes it."""
