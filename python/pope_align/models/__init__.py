"""Language models: found by name, loaded, and read as the objective needs them. Importing it loads no torch."""
