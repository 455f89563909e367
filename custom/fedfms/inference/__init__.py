"""Using a trained model: read the file that a run left, predict masks, export."""
