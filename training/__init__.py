"""Parts of a training run: its state, one step, its data loaders, its directory."""
