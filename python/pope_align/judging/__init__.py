"""Judgements by a language model: which of two models serves people better, and ratings of single answers."""
