"""What `ddl attack` measures: accuracy under attacks and under corruptions of inputs."""
