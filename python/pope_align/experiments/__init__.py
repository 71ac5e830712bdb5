"""Studies that can be run again: each module is one, and says what it shows."""
