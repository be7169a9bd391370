"""Files and annotations as samples, for training and evaluation."""
