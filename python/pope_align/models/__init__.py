"""Language models: located by name, loaded, and run as the objective needs it. Importing this loads no torch."""
