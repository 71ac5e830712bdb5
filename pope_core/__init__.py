"""POPE: the value of a language model on logged slates of rated responses, and the loss that raises it."""
