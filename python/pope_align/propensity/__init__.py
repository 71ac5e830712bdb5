"""Log-probabilities of logged responses: scoring any model, the logging policy, fitting one that nobody recorded."""
