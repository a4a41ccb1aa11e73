"""What the command `lgfast` takes, as scripts with which shells complete it."""
