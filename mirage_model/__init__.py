"""Mirage's library: a video world model with a latent spatial memory. It knows nothing of ROS."""
