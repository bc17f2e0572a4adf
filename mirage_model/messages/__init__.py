"""Contents of ROS messages as NumPy arrays, the same for the node, for bags and for training.

The functions take any object with the attributes of the message: rclpy's, rosbags' or a test's.
Neither ROS nor torch is imported. A message that cannot be used raises ValueError, which names the
field and what is wrong with it.
"""
