"""Floor 2: what a model is — its anatomy, its canonical weights, its places, its maps, frames and bases."""
