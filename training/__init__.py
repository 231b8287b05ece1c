"""What a training run is: its state, one step, its directory."""
