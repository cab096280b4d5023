"""`hf-vq app`: tokens to look at, to change and to make anew, in a browser."""
