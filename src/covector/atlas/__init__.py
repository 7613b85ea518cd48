"""The atlas of a model: what is decomposed, one piece of work at a time, and how the pieces become one store."""
