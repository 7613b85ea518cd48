"""Observables pulled back through a model: one linear stand-in per nonlinear piece, from the outputs to the stream."""
