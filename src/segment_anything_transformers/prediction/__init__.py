"""A model, an image, prompts: predictor, mask generator, and pictures of masks."""
