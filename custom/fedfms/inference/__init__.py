"""Using a trained model: reading the files that a run leaves, predicting, and exporting."""
