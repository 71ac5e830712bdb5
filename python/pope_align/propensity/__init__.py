"""Log-probabilities of logged responses: scoring any model, the logging policy, and fitting one if none was
recorded.
"""
