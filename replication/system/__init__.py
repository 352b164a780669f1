"""What every part stands on: errors, files, signals, the machine and the terminal."""
