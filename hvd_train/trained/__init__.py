"""What is done with a trained model: evaluate, predict, serve, export, explain and attack it."""
