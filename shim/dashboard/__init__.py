"""The pages that show productions in a browser."""
