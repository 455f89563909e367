"""The runs behind a table: which there are, one run, all of them side by side, and what that will take."""
