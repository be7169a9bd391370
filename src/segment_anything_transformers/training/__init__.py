"""Fine-tuning on samples."""
