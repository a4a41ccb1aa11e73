"""`python -m lgfast.doctor`: what is fast, slow, missing or wrong here, and the one command that fixes it."""
