"""All that travels to the Hub with the weights: a flat folder that imports no other wing."""
