"""PyTorch's side: the libraries' own components, run on recorded inputs."""
