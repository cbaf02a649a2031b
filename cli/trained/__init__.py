"""What the commands with a trained model share, and the tables and pictures of each."""
